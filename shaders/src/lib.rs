//! Vulkan compute shaders, compiled to SPIR-V 1.6 when this crate is built: the kernels by name and variant
//! ([`Kernel`]), their code ([`spirv`]) and what can be read back from it ([`reflect`]).
//!
//! The crate knows nothing of models, files or devices. Sizes and tiles are specialization constants, weight types are
//! variants. All kernels read their buffers through device addresses, so they have no bindings.
//!
//! A [`ShaderSet`] is what a program runs: these kernels, or with a folder of edited sources, kernels compiled from them
//! at run time (feature `compiler`).

#[cfg(feature = "compiler")]
mod compiler;
mod manifest;
pub mod reflect;
mod set;

pub use manifest::{Kernel, WeightType};
pub use set::{ShaderError, ShaderSet, write_sources};

/// SPIR-V of `kernel`.
pub fn spirv(kernel: Kernel) -> &'static [u32] {
    bytemuck::cast_slice(&SPIRV[kernel.index()].0)
}

/// A source file of this crate.
#[derive(Clone, Copy, Debug)]
pub struct SourceFile {
    /// `comp` or `include`.
    pub folder: &'static str,
    /// Name, e.g. `matvec.glsl`.
    pub name: &'static str,
    /// What it holds.
    pub text: &'static str,
}

/// The sources of all kernels.
pub fn sources() -> &'static [SourceFile] {
    &SOURCES
}

/// Bytes that may be read as words.
#[repr(C, align(4))]
struct Aligned<T: ?Sized>(T);
type Words = Aligned<[u8]>;

include!(concat!(env!("OUT_DIR"), "/spirv.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_kernel_is_its_place_in_the_manifest() {
        for (i, kernel) in Kernel::all().enumerate() {
            assert_eq!(kernel.index(), i, "{}", kernel.name());
            assert_eq!(spirv(kernel)[0], 0x0723_0203, "{} starts with SPIR-V's magic number", kernel.name());
        }
        assert_eq!(Kernel::all().count(), N_KERNELS);
    }

    #[test]
    fn variants_differ() {
        let all: Vec<_> = Kernel::all().collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(spirv(*a), spirv(*b), "{} and {}", a.name(), b.name());
            }
        }
    }
}
