//! Scheduler.

/// A request that can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {}
