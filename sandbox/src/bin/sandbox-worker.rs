//! A worker process of the sandbox; started by `sandbox::Workers`, never by hand.

fn main() -> Result<(), sandbox::SandboxError> {
    // As in a program whose commands write to it: a worker must not wait for the lock.
    let _out = std::io::stdout().lock();
    sandbox::serve()
}
