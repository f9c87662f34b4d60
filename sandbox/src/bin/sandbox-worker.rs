//! A worker process of the sandbox; started by `sandbox::Workers`, never by hand.

fn main() -> Result<(), sandbox::SandboxError> {
    sandbox::serve()
}
