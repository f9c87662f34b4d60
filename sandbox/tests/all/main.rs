//! The sandbox on its real module, in one process: the interpreter is loaded once.

mod cells;
mod common;
mod cpython;
mod forks;
mod guest_record;
mod isolation;
mod library;
mod limits;
mod ntheory;
mod numpy;
mod suite;
mod suites;
mod workers;
