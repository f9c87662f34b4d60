//! One file per kernel: its push constants and a `record` function that checks shapes and ranges, then records it with
//! its cost.
//! Shapes that a model or a batch can get wrong were refused earlier with an error; what is checked here are the
//! engine's own invariants, since a kernel that gets a wrong size would overwrite other memory.

pub mod attention;
pub mod attention_work;
pub mod embed;
pub mod gated;
pub mod gather;
pub mod half_rows;
pub mod kv_store;
pub mod linear;
pub mod moe_sum;
pub mod place_heads;
pub mod probe;
pub mod prompt_attention;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod route;
pub mod scale_by_sigmoid;
pub mod swiglu;

use super::memory::Region;

/// `[n_rows, stride]` f32 in device memory, of which the first `width` elements of a row are in use.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'r> {
    /// Where it lies.
    pub region: &'r Region,
    /// Rows in use.
    pub n_rows: usize,
    /// Elements per row in use.
    pub width: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Rows<'_> {
    /// Checks that the rows lie in the region.
    fn check(&self, what: &str) {
        assert!(self.n_rows > 0 && self.width > 0 && self.width <= self.stride, "{what}: {self:?}");
        let bytes = (self.n_rows * self.stride * 4) as u64;
        assert!(bytes <= self.region.bytes && bytes < 1 << 33, "{what}: {bytes} bytes of {}", self.region.bytes);
    }

    /// Bytes of the elements in use.
    fn bytes(&self) -> u64 {
        (self.n_rows * self.width * 4) as u64
    }

    /// Checks that rows can be read as vec4s: the stride is a multiple of 4 elements.
    fn stride4(&self, what: &str) -> u32 {
        assert!(self.stride.is_multiple_of(4), "{what}: stride {}", self.stride);
        (self.stride / 4) as u32
    }
}

/// Per-token numbers in device memory, `[n_tokens] u32`.
fn check_indices(region: &Region, n: usize, what: &str) {
    assert!((n * 4) as u64 <= region.bytes, "{what}: {n} of {} bytes", region.bytes);
}

/// A grid of at least `n` workgroups in x and y. The kernel numbers them row by row and skips those past the end.
fn flat_grid(n: u32, max: [u32; 3]) -> [u32; 3] {
    let y = n.div_ceil(max[0]);
    assert!(y <= max[1], "{n} workgroups");
    [n.div_ceil(y), y, 1]
}

/// Declares a kernel's push constants, and the table that the test compares with the shader's.
macro_rules! push_constants {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub(in crate::backend::vulkan) struct $name { $(pub $field: $ty),* }

        #[cfg(test)]
        impl $name {
            /// Name, offset and kind of each field.
            pub(in crate::backend::vulkan) fn members() -> Vec<shaders::reflect::Member> {
                use crate::backend::vulkan::kernels::tests::PushField;
                vec![$(shaders::reflect::Member {
                    name: stringify!($field).to_owned(),
                    offset: std::mem::offset_of!($name, $field) as u32,
                    kind: <$ty as PushField>::KIND,
                }),*]
            }
        }
    };
}
use push_constants;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
    use shaders::reflect::{Member, MemberKind, interface};
    use shaders::{Kernel, spirv};

    /// What a field's type must be in the shader.
    pub(in crate::backend::vulkan) trait PushField {
        const KIND: MemberKind;
    }
    impl PushField for ReadAddress {
        const KIND: MemberKind = MemberKind::ReadAddress;
    }
    impl PushField for WriteAddress {
        const KIND: MemberKind = MemberKind::WriteAddress;
    }
    impl PushField for u32 {
        const KIND: MemberKind = MemberKind::Scalar;
    }
    impl PushField for f32 {
        const KIND: MemberKind = MemberKind::Scalar;
    }

    #[test]
    fn push_constants_are_those_of_the_shaders() {
        for kernel in Kernel::all() {
            let mut members: Vec<Member> = match kernel {
                Kernel::Embed(_) => embed::Push::members(),
                Kernel::Matvec(_) | Kernel::Matmul(_) | Kernel::DotMatvec(_) | Kernel::HalfMatmul(_) => {
                    linear::Push::members()
                }
                Kernel::GatedMatvec(_)
                | Kernel::GatedMatmul(_)
                | Kernel::DotGatedMatvec(_)
                | Kernel::HalfGatedMatmul(_) => gated::Push::members(),
                Kernel::Quantize => quantize::Push::members(),
                Kernel::RmsNormQuantize => rms_norm::quantized::Push::members(),
                Kernel::HalfRows => half_rows::Push::members(),
                Kernel::RmsNorm => rms_norm::Push::members(),
                Kernel::Rope => rope::Push::members(),
                Kernel::KvStore => kv_store::Push::members(),
                Kernel::PlaceHeads => place_heads::Push::members(),
                Kernel::Attention | Kernel::PromptAttention | Kernel::HalfPromptAttention => attention::Push::members(),
                Kernel::AttentionMerge => attention::merge::Push::members(),
                Kernel::Swiglu => swiglu::Push::members(),
                Kernel::Gather => gather::Push::members(),
                Kernel::MoeRoute => route::Push::members(),
                Kernel::MoeSum => moe_sum::Push::members(),
                Kernel::ScaleBySigmoid => scale_by_sigmoid::Push::members(),
                Kernel::Read => probe::read::Push::members(),
                Kernel::Fma | Kernel::MatrixFma => probe::Push::members(),
            };
            // Rust rounds a struct with addresses up to 8 bytes; the shader has no such member.
            members.retain(|m| m.name != "padding");
            assert_eq!(interface(spirv(kernel)).members, members, "{}", kernel.name());
        }
    }

    #[test]
    fn a_grid_covers_all_workgroups_within_the_limits() {
        let max = [65535, 65535, 65535];
        for n in [1, 2, 65535, 65536, 75968, 1 << 20] {
            let [x, y, z] = flat_grid(n, max);
            assert!(x <= max[0] && y <= max[1] && z == 1 && x * y >= n && x * y < n + y, "{n}: {x} × {y}");
        }
    }
}
