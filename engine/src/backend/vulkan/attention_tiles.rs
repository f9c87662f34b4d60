//! Tiles of the attention of prompts: how many query rows and positions a workgroup has in shared memory, with matrix
//! units and without. `Tuning` holds what a device should use; a head too wide for its shared memory gets a smaller tile
//! ([`PromptTile::for_head`]) or none, and then each token has a workgroup of its own.

use super::instance::{DeviceInfo, MatrixShape};
use crate::kv::PAGE;

/// Fewest query rows of a tile.
pub(super) const MIN_ROWS: u32 = 8;

/// Tile of the attention of prompts without matrix units (`f32_anykv_prompt_attention.comp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptTile {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Query rows (tokens times the query heads that share a key/value head) per workgroup.
    pub rows: u32,
    /// Positions in shared memory at a time: a multiple of a page's.
    pub block: u32,
    /// Query rows per invocation, a multiple of 4.
    pub thread_rows: u32,
}

impl PromptTile {
    /// Invocations that share the positions, and then the head's elements, of the same rows.
    fn position_lanes(self) -> u32 {
        self.workgroup / (self.rows / self.thread_rows).max(1)
    }

    /// Bytes of shared memory for heads of `head_dim` elements: queries and keys or values, padded by four elements; the
    /// weights of the block, and of four rows more; what invocations tell each other of their rows.
    pub fn shared_bytes(self, head_dim: usize) -> u32 {
        let heads = (self.rows + self.block) * (head_dim as u32 / 4 + 1);
        16 * (heads + self.block * (self.rows / 4 + 1) + self.position_lanes() * self.rows / 4)
    }

    /// Whether the kernel can be made of it.
    pub fn is_sound(self) -> bool {
        let lanes = self.position_lanes();
        self.thread_rows.is_multiple_of(4)
            && self.thread_rows > 0
            && self.rows >= MIN_ROWS
            && self.rows.is_multiple_of(self.thread_rows)
            && lanes > 0
            && self.rows / self.thread_rows * lanes == self.workgroup
            && self.block.is_multiple_of(PAGE as u32)
            && self.block.is_multiple_of(lanes)
            && self.block > 0
    }

    /// The tile itself, or one with less of everything, that fits `shared_bytes` with heads of `head_dim` elements.
    pub fn for_head(self, head_dim: usize, shared_bytes: u32) -> Option<PromptTile> {
        let mut tile = self;
        while tile.is_sound() {
            if tile.shared_bytes(head_dim) <= shared_bytes {
                return Some(tile);
            }
            let shorter = PromptTile { block: tile.block / 2, ..tile };
            let narrower = PromptTile { rows: tile.rows / 2, workgroup: tile.workgroup / 2, ..tile };
            tile = if shorter.is_sound() { shorter } else { narrower };
        }
        None
    }
}

/// Tile of the attention of prompts on matrix units (`f16_anykv_prompt_attention.comp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixPromptTile {
    /// What the device multiplies in one step.
    pub shape: MatrixShape,
    /// Query rows per workgroup.
    pub rows: u32,
    /// Positions in shared memory at a time.
    pub block: u32,
    /// Query rows per subgroup.
    pub wave_rows: u32,
    /// Invocations of a subgroup.
    pub subgroup: u32,
}

impl MatrixPromptTile {
    /// Specialization constant with the size of subgroups.
    pub(super) const SUBGROUP_ID: usize = 11;
    /// Elements of the widest head: queries and sums of wider ones don't fit the registers.
    const MAX_HEAD: usize = 128;

    /// Invocations per workgroup.
    pub fn workgroup(self) -> u32 {
        self.rows / self.wave_rows * self.subgroup
    }

    /// Bytes of shared memory for heads of `head_dim` elements: keys, transposed values and each subgroup's stage, all padded
    /// by 16 bytes a row, or in their place queries; a number per invocation.
    pub fn shared_bytes(self, head_dim: usize) -> u32 {
        let head = (head_dim as u32).next_multiple_of(self.shape.m.max(self.shape.k));
        let key_row = head / 8 + 1;
        let values = head * (self.block / 8 + 1);
        let all = self.block * key_row + values + self.rows * (self.block / 4 + 1);
        16 * all.max(self.rows * key_row) + 4 * self.workgroup()
    }

    /// Whether the kernel can be made of it.
    pub fn is_sound(self) -> bool {
        let MatrixPromptTile { shape, rows, block, wave_rows, subgroup, .. } = self;
        wave_rows > 0
            && rows > 0
            && rows.is_multiple_of(wave_rows)
            && rows >= MIN_ROWS
            && wave_rows.is_multiple_of(shape.n)
            && subgroup.is_multiple_of(wave_rows)
            // Pages are transposed as a whole; shared memory is counted in pieces of eight halves, or four sums.
            && PAGE == 8
            && block > 0
            && block.is_multiple_of(8)
            && block.is_multiple_of(shape.m)
            && block.is_multiple_of(shape.k)
            && shape.k.is_multiple_of(8)
            && shape.m.is_multiple_of(4)
            && (block / 4).is_multiple_of(2 * (subgroup / wave_rows))
            && self.workgroup() <= 256
    }

    /// The tile itself, or a smaller one, that fits `shared_bytes` with heads of `head_dim` elements.
    pub fn for_head(self, head_dim: usize, shared_bytes: u32) -> Option<MatrixPromptTile> {
        let mut tile = self;
        while tile.is_sound() && head_dim.is_multiple_of(8) && head_dim <= Self::MAX_HEAD {
            if tile.shared_bytes(head_dim) <= shared_bytes {
                return Some(tile);
            }
            let shorter = MatrixPromptTile { block: tile.block / 2, ..tile };
            let narrower = MatrixPromptTile { rows: tile.rows / 2, ..tile };
            tile = if shorter.is_sound() { shorter } else { narrower };
        }
        None
    }

    /// The tile for a device with matrix units that are of use.
    pub fn of(info: &DeviceInfo) -> Option<MatrixPromptTile> {
        let shape = *info.matrices.iter().find(|s| s.m == 16 && s.n == 16).or(info.matrices.first())?;
        let subgroup = 32.clamp(info.subgroup_sizes.0, info.subgroup_sizes.1);
        let (rows, block) = if info.is_cpu() { (32, 16) } else { (128, 32) };
        let tile = MatrixPromptTile { shape, rows, block, wave_rows: shape.n, subgroup };
        let tiles = [tile, MatrixPromptTile { rows: rows / 2, ..tile }];
        tiles.into_iter().find(|t| t.is_sound() && t.for_head(64, info.shared_bytes).is_some())
    }

    /// The last specialization constants of the kernel.
    pub(super) fn constants(self) -> [u32; 7] {
        let MatrixShape { m, n, k } = self.shape;
        [self.rows, self.block, self.wave_rows, m, n, k, self.subgroup]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_heads_get_smaller_tiles_and_too_wide_ones_none() {
        let tile = PromptTile { workgroup: 64, rows: 32, block: 32, thread_rows: 4 };
        assert_eq!(tile.for_head(64, 32 << 10), Some(tile));
        for head_dim in [20, 64, 80, 96, 128, 192, 256, 512] {
            for limit in [16 << 10, 32 << 10, 48 << 10, 64 << 10] {
                let Some(smaller) = tile.for_head(head_dim, limit) else {
                    assert!(head_dim * 4 * (8 + 8) > limit as usize / 2, "{head_dim} elements in {limit} bytes");
                    continue;
                };
                assert!(smaller.is_sound() && smaller.shared_bytes(head_dim) <= limit, "{smaller:?}");
                assert_eq!(smaller.position_lanes(), tile.position_lanes());
            }
        }
        assert_eq!(tile.for_head(1024, 16 << 10), None);
    }
}
