//! The program as a process: its arguments, outputs, exit statuses and messages.
//!
//! Most tests run on a model of random weights that is made here in a second; those on a real model run where
//! `AIMO_MODELS_DIR` or the cache directory holds it (`cargo xtask test` fetches it) and say so where they skip.

mod contest;
mod eval;
mod files;
mod golden;
mod kernels;
mod perplexity;
mod protocols;
mod python;
mod real_model;
mod research;
mod resume;
mod run;
mod serve;
mod serving;
mod synth;
mod tiny;
mod tools;
mod usage;
