//! Sizes of workgroups and tiles for a device: the one place that decides them. All are specialization constants, so
//! another choice needs no new shader.

use super::attention_tiles::{MatrixPromptTile, PromptTile};
use super::commands::Cost;
use super::instance::{DeviceInfo, MatrixShape};
use super::kernels::prompt_attention::PromptKernel;
use super::pace::Pace;
use super::tune::MAX_ATTENTION_GROUPS;

/// Tile of the matrix product: `block_rows × block_tokens` per workgroup, `thread_rows × thread_tokens` per
/// invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulTile {
    /// Rows of the weight per workgroup.
    pub block_rows: u32,
    /// Tokens per workgroup.
    pub block_tokens: u32,
    /// Rows per invocation.
    pub thread_rows: u32,
    /// Tokens per invocation.
    pub thread_tokens: u32,
}

impl MatmulTile {
    /// Invocations per workgroup.
    pub fn workgroup(self) -> u32 {
        self.block_rows / self.thread_rows * (self.block_tokens / self.thread_tokens)
    }

    /// Bytes of shared memory: 32 weights or activations for each row and token, and one column of padding each (two
    /// for the rows where they are of two matrices); a number per token; the values of a weight type.
    pub fn shared_bytes(self) -> u32 {
        32 * 4 * (self.block_rows + self.block_tokens + 3) + 4 * self.block_tokens + 64
    }

    /// Half the rows, for kernels that compute them of two matrices.
    pub fn halved(self) -> MatmulTile {
        MatmulTile { block_rows: self.block_rows / 2, thread_rows: self.thread_rows / 2, ..self }
    }

    /// The first specialization constants of the kernels.
    pub(super) fn constants(self) -> [u32; 5] {
        [self.workgroup(), self.block_rows, self.block_tokens, self.thread_rows, self.thread_tokens]
    }
}

/// Tile of the matrix product on matrix units: `block_rows × block_tokens` per workgroup, `wave_rows × wave_tokens` per
/// subgroup, in steps of `tile_k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixTile {
    /// What the device multiplies in one step.
    pub shape: MatrixShape,
    /// Rows of the weight per workgroup.
    pub block_rows: u32,
    /// Tokens per workgroup.
    pub block_tokens: u32,
    /// Rows per subgroup: a multiple of twice the shape's, so that two matrices can share it.
    pub wave_rows: u32,
    /// Tokens per subgroup.
    pub wave_tokens: u32,
    /// Weights of a row, and activations of a token, in shared memory at a time.
    pub tile_k: u32,
    /// Tiles in shared memory: with two, one is filled while the other is multiplied.
    pub buffers: u32,
    /// Invocations of a subgroup.
    pub subgroup: u32,
}

impl MatrixTile {
    /// Matrices that a subgroup's tokens make up at most: as many as `put_sums` in coopmat.glsl stores.
    const MAX_FRAGMENTS: u32 = 8;
    /// Specialization constant with the size of subgroups.
    pub(super) const SUBGROUP_ID: usize = 10;

    /// Invocations per workgroup.
    pub fn workgroup(self) -> u32 {
        self.block_rows / self.wave_rows * (self.block_tokens / self.wave_tokens) * self.subgroup
    }

    /// Bytes of shared memory, for one matrix or two: the tiles, or in their place the sums on their way out; a number
    /// per token; the values of a weight type.
    pub fn shared_bytes(self) -> u32 {
        let tiles = self.buffers * (self.block_rows + self.block_tokens) * (self.tile_k / 2 + 4);
        let sums = self.workgroup() / self.subgroup * self.shape.n * (self.wave_rows + 8);
        4 * (tiles.max(sums) + self.block_tokens) + 64
    }

    /// Half the rows, for kernels that compute them of two matrices.
    pub fn halved(self) -> MatrixTile {
        MatrixTile { block_rows: self.block_rows / 2, wave_rows: self.wave_rows / 2, ..self }
    }

    /// Whether a device can run it.
    pub fn fits(self, info: &DeviceInfo) -> bool {
        let MatrixTile { shape, block_rows, block_tokens, wave_rows, wave_tokens, tile_k, subgroup, .. } = self;
        info.matrices.contains(&shape)
            && block_rows.is_multiple_of(wave_rows)
            && block_tokens.is_multiple_of(wave_tokens)
            && wave_rows.is_multiple_of(2 * shape.m)
            && wave_tokens.is_multiple_of(shape.n)
            && wave_tokens / shape.n <= Self::MAX_FRAGMENTS
            // Shared memory is counted in pieces of eight halves, or four sums.
            && shape.k.is_multiple_of(8)
            && shape.m.is_multiple_of(4)
            && tile_k.is_multiple_of(shape.k)
            && tile_k.is_multiple_of(32)
            && (info.subgroup_sizes.0..=info.subgroup_sizes.1).contains(&subgroup)
            && self.workgroup() <= 256
            && self.shared_bytes() <= info.shared_bytes
    }

    /// The first specialization constants of the kernels.
    pub(super) fn constants(self) -> [u32; 11] {
        let MatrixShape { m, n, k } = self.shape;
        let blocks = [self.workgroup(), self.block_rows, self.block_tokens, self.wave_rows, self.wave_tokens];
        let [a, b, c, d, e] = blocks;
        [a, b, c, d, e, m, n, k, self.tile_k, self.buffers, self.subgroup]
    }
}

/// Tiles for matrix units by number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixTiles {
    /// They are used from this number of tokens on.
    pub from: usize,
    /// For experts: from this mean number of tokens per expert on.
    pub experts_from: usize,
    /// Workgroups that keep the device's matrix units busy: narrower tiles are chosen where there would be fewer.
    pub busy_groups: usize,
    /// The tiles, by ascending tokens per workgroup.
    pub tiles: [MatrixTile; 5],
}

/// Rows of a product's weight, and its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Rows of the weight; of two that are computed together, those of both; of experts, those of all.
    pub n_rows: usize,
    /// Tokens; of experts, the mean of each.
    pub n_tokens: usize,
}

impl MatrixTiles {
    /// The tile for a product: the least work, counting for each workgroup the rows and tokens that it makes room for and
    /// 32 tokens more for the decoding of its weights. Too few workgroups to keep the device busy take as long as if they
    /// were enough. The widest is for prompts that it cuts into four parts: of fewer workgroups, too many compute units
    /// have none in the last round.
    pub fn for_extent(&self, Extent { n_rows, n_tokens }: Extent) -> MatrixTile {
        let [.., widest] = self.tiles;
        let n_usable = self.tiles.len() - usize::from(n_tokens < 4 * widest.block_tokens as usize);
        let work = |tile: &&MatrixTile| {
            let (height, width) = (tile.block_rows as usize, tile.block_tokens as usize);
            let n_groups = n_rows.div_ceil(height) * n_tokens.div_ceil(width);
            (n_groups.max(self.busy_groups) * height * (width + 32), std::cmp::Reverse(width))
        };
        *self.tiles[..n_usable].iter().min_by_key(work).expect("there are tiles")
    }

    /// The tiles for a device with matrix units that are of use.
    fn of(info: &DeviceInfo) -> Option<MatrixTiles> {
        let shape = *info.matrices.iter().find(|s| s.m == 16 && s.n == 16).or(info.matrices.first())?;
        let subgroup = 32.clamp(info.subgroup_sizes.0, info.subgroup_sizes.1);
        let tile = |block_rows, block_tokens, wave_rows, wave_tokens, buffers| MatrixTile {
            shape,
            block_rows,
            block_tokens,
            wave_rows,
            wave_tokens,
            tile_k: 32,
            buffers,
            subgroup,
        };
        // For each number of tokens from the best to what fits small devices.
        let choices = [
            [tile(128, 16, 32, 16, 2), tile(64, 16, 32, 16, 1), tile(64, 16, 16, 16, 1)],
            [tile(128, 32, 32, 32, 2), tile(64, 32, 32, 32, 1), tile(64, 32, 16, 16, 1)],
            [tile(128, 64, 32, 32, 2), tile(64, 64, 32, 32, 1), tile(32, 64, 16, 32, 1)],
            [tile(128, 128, 64, 32, 2), tile(64, 128, 32, 32, 1), tile(32, 64, 16, 32, 1)],
            // On gfx1151, of the vector instructions' time in the loop of Q4_K 80 % are matrix products, of the tile of 128
            // tokens 73 %: weights are decoded half as often. Two buffers: there is room for two workgroups of this tile
            // in a pair of compute units, two subgroups less for each SIMD than registers allow, so that what is loaded
            // must be under way while matrices are multiplied.
            [tile(128, 256, 64, 64, 2), tile(64, 128, 32, 32, 1), tile(32, 64, 16, 32, 1)],
        ];
        // Software compiles slowly what is unrolled: subgroups with little each.
        let small = [
            [tile(32, 16, 16, 16, 1); 3],
            [tile(32, 32, 16, 16, 1); 3],
            [tile(64, 32, 16, 16, 1); 3],
            [tile(64, 64, 16, 16, 1); 3],
            [tile(64, 64, 16, 16, 1); 3],
        ];
        let choices = if info.is_cpu() { small } else { choices };
        let best = |all: [MatrixTile; 3]| all.into_iter().find(|t| t.fits(info));
        let [a, b, c, d, e] = choices.map(best);
        let tiles = [a?, b?, c?, d?, e?];
        // One for each compute unit. Software has a few threads, which any product keeps busy.
        let busy_groups = if info.is_cpu() { 1 } else { units(info) };
        // Up to 32 tokens integers lose no time per token (see `Tuning::of`). Tiles of 128 rows would: a matrix of 4,096
        // rows is 32 of them, which load 18 bytes a row at a time (Q4_K): 74 KB under way, where a bus of 256 GB/s with
        // 1 µs of latency needs 256 KB.
        Some(MatrixTiles { from: if info.fast_dot { 33 } else { 9 }, experts_from: 8, busy_groups, tiles })
    }
}

/// Compute units of a device; where its driver doesn't tell, as many as gfx1151 has.
fn units(info: &DeviceInfo) -> usize {
    info.compute_units.unwrap_or(40) as usize
}

/// More tokens than any pass has.
pub(super) const NEVER: usize = 1 << 24;

/// The sizes used on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Invocations per workgroup of element-wise kernels.
    pub elementwise: u32,
    /// Invocations per workgroup of norms.
    pub norm: u32,
    /// Invocations per workgroup of attention: a quarter of the largest head at least.
    pub attention: u32,
    /// Invocations per subgroup of attention.
    pub attention_subgroup: u32,
    /// Workgroups that keep the device busy: attention over long contexts is split into at least as many.
    pub attention_groups: usize,
    /// Positions that a split has at least.
    pub attention_split: usize,
    /// Query rows of a sequence from which on its attention is computed in tiles.
    pub prompt_from: usize,
    /// The tile, as far as heads fit it.
    pub prompt: PromptTile,
    /// The tile on matrix units, where the device has them and f16 factors are allowed.
    pub prompt_matrix: Option<MatrixPromptTile>,
    /// Whether it is used.
    pub prompt_on_matrix: bool,
    /// Workgroups below which tiles over long contexts are split.
    pub prompt_groups: usize,
    /// Bytes of shared memory that a workgroup has at most.
    pub shared_bytes: u32,
    /// Invocations per workgroup that norms, rotates and stores a head.
    pub place_heads: u32,
    /// Invocations of the workgroup that chooses experts.
    pub route: u32,
    /// Invocations per workgroup of matrix–vector products.
    pub matvec: u32,
    /// Rows per workgroup of matrix–vector products of one or two columns, and of more, in f32.
    pub matvec_rows: [u32; 2],
    /// The same of those in integers.
    pub dot_rows: [u32; 2],
    /// Least number of tokens whose products with quantised weights run in integers: where a norm leaves their
    /// activations in bytes anyway, and where that takes a kernel of its own. `usize::MAX`: none.
    pub dot_from: [usize; 2],
    /// Numbers of columns that the matrix–vector kernel is compiled for, ascending; a number of tokens in between
    /// takes the next larger one.
    pub matvec_columns: &'static [u32],
    /// From this number of tokens on, the tiled product is used.
    pub matmul_from: usize,
    /// Its tile; the number of rows per invocation is even.
    pub matmul: MatmulTile,
    /// From this mean number of tokens per expert on, the tiled product is used for experts.
    pub experts_matmul_from: usize,
    /// Its tile: fewer tokens, since they are shared out.
    pub experts: MatmulTile,
    /// Products of many tokens on matrix units, where the device has them and f16 activations are allowed.
    pub matrix: Option<MatrixTiles>,
    /// Invocations per workgroup that makes f16 of a row.
    pub half_rows: u32,
    /// Milliseconds after which a pass goes on in another submit: systems reset a GPU whose submit takes seconds.
    pub submit_ms: u32,
    /// Work that is expected to take as long, until it was measured.
    pub submit_work: Cost,
}

#[cfg(test)]
impl Tuning {
    /// Sizes of no device in particular.
    pub(super) fn for_tests() -> Tuning {
        let tile = MatmulTile { block_rows: 64, block_tokens: 64, thread_rows: 4, thread_tokens: 4 };
        Tuning {
            elementwise: 64,
            norm: 64,
            attention: 64,
            attention_subgroup: 8,
            attention_groups: 160,
            attention_split: 256,
            prompt_from: 64,
            prompt: PromptTile { workgroup: 64, rows: 32, block: 32, thread_rows: 4 },
            prompt_matrix: None,
            prompt_on_matrix: true,
            prompt_groups: 60,
            shared_bytes: 32 << 10,
            place_heads: 32,
            route: 64,
            matvec: 32,
            matvec_rows: [4, 2],
            dot_rows: [2, 4],
            dot_from: [1, 2],
            matvec_columns: &[1, 2, 4, 8],
            matmul_from: 33,
            matmul: tile,
            experts_matmul_from: 8,
            experts: tile,
            matrix: None,
            half_rows: 64,
            submit_ms: 200,
            submit_work: Cost::default(),
        }
    }
}

impl Tuning {
    /// Rows per workgroup of a matrix–vector product of so many columns, in integers or f32.
    pub(super) fn rows_for(&self, columns: u32, dot: bool) -> u32 {
        let rows = if dot { self.dot_rows } else { self.matvec_rows };
        rows[usize::from(columns > 2)]
    }

    /// The kernel for the attention of prompts with heads of `head_dim` elements; `None`: they are too wide for it.
    pub(super) fn prompt_kernel(&self, head_dim: usize) -> Option<PromptKernel> {
        let matrix = self
            .prompt_matrix
            .filter(|_| self.prompt_on_matrix)
            .and_then(|tile| tile.for_head(head_dim, self.shared_bytes));
        let single = || self.prompt.for_head(head_dim, self.shared_bytes).map(PromptKernel::Single);
        matrix.map(PromptKernel::Matrix).or_else(single)
    }

    /// What is expected of the device before anything was measured.
    pub(super) fn pace(&self) -> Pace {
        Pace::new(f64::from(self.submit_ms) * 1e-3, self.submit_work)
    }

    /// The same with activations in f32 in every product.
    pub fn exact(self) -> Tuning {
        Tuning { dot_from: [usize::MAX; 2], matrix: None, prompt_matrix: None, ..self }
    }

    /// The same with products of a few tokens in integers, also where the device has no instruction for them.
    pub fn in_integers(self) -> Tuning {
        Tuning { dot_from: [1, 2], ..self }
    }

    /// The sizes for `info`.
    ///
    /// A matrix–vector workgroup is one subgroup, of 32 where a kernel may choose (gfx1151 has 32 and 64). Of gfx1151's
    /// two, 32 leaves fewer lanes idle: a row has a unit of 32 weights for each, and gpt-oss's rows of 2,880 are 90 units
    /// (94 % of three rounds of 32, 70 % of two of 64), Qwen3-30B's experts' of 768 are 24 (75 % and 37 %). Code for 32 has
    /// 12 waves per SIMD or more (f32: 6 or 7 with 64, since each lane holds two rows' decoded weights), and a third
    /// fewer instructions per weight at 8 columns, where registers are enough for 4 rows in integers. The exception are 16
    /// columns of 4 rows in integers: 10 waves for K-quants and IQ4. With 2 rows they would be 12 or more, with all loads
    /// of x twice per weight; 10 waves of 32 lanes with 64 bytes each are 1.6 MB under way on 80 SIMDs, a bus of 256 GB/s
    /// with 1 µs of latency needs 0.26 MB.
    ///
    /// No batch up to 32 is slower in all than a smaller one, as long as the bus is the bound: up to 16 tokens a weight is
    /// read once; of 17 to 32, two neighbouring workgroups read it, the second from the cache, and both skip the columns
    /// that are not there. On gfx1151 a SIMD has time for 17 (Q4_K) or 18 (MXFP4) instructions per weight at 215 GB/s; in
    /// integers 16 columns take 14 and 13, 17 about 17 and 18, 32 take 28 and 26, so that from 17 on the time per token
    /// still falls, to 81 and 72 % of what it is at 16. A tile of 32 columns would keep 128 sums per lane, or 2 rows and
    /// twice the loads of x. In f32 8 columns take 18 to 20: there the time grows with the tokens from 9 on.
    /// Where there are matrix units, they take over from `matrix.from` on, which is no less than 33 then.
    ///
    /// What is counted in workgroups for the whole device follows its number of compute units, 40 on gfx1151; the rest is
    /// gfx1151's for every GPU, until `aimo-engine tune` has measured another one.
    ///
    /// Attention of single tokens runs in subgroups of 32 too: on gfx1151 12 waves per SIMD for every size of head and
    /// group, of 64 lanes 5 to 8. That is 384 lanes in both cases, or 320 to 512; the code has 15 to 26 % fewer instructions,
    /// and the compiler's inverse throughput is 3 to 25 % lower.
    pub fn of(info: &DeviceInfo) -> Tuning {
        let tile = MatmulTile { block_rows: 64, block_tokens: 64, thread_rows: 8, thread_tokens: 4 };
        let small_tile = MatmulTile { block_rows: 32, block_tokens: 32, thread_rows: 4, thread_tokens: 2 };
        let experts = MatmulTile { block_rows: 64, block_tokens: 32, thread_rows: 4, thread_tokens: 4 };
        let fitting = |tile: MatmulTile| if tile.shared_bytes() <= info.shared_bytes { tile } else { small_tile };
        let (smallest, largest) = info.subgroup_sizes;
        let general = Tuning {
            elementwise: 128,
            norm: 256,
            attention: 128,
            attention_subgroup: if (smallest..=largest).contains(&32) { 32 } else { info.subgroup_size },
            // Four for each compute unit.
            attention_groups: (4 * units(info)).min(MAX_ATTENTION_GROUPS),
            attention_split: 256,
            // A tile reads keys and values once for all its rows, a workgroup of a single token for up to 8.
            prompt_from: 64,
            prompt: PromptTile { workgroup: 256, rows: 64, block: 32, thread_rows: 4 },
            prompt_matrix: MatrixPromptTile::of(info),
            prompt_on_matrix: true,
            // Three for each pair of compute units.
            prompt_groups: (3 * units(info)).div_ceil(2),
            shared_bytes: info.shared_bytes,
            place_heads: 32,
            route: 256,
            matvec: if (smallest..=largest).contains(&32) { 32 } else { info.subgroup_size.clamp(32, 64) },
            matvec_rows: [2, 2],
            dot_rows: [2, 4],
            dot_from: if info.fast_dot { [1, 2] } else { [usize::MAX; 2] },
            matvec_columns: &[1, 2, 4, 8, 16],
            matmul_from: 33,
            matmul: fitting(tile),
            experts_matmul_from: 16,
            experts: fitting(experts),
            matrix: MatrixTiles::of(info),
            half_rows: 256,
            submit_ms: 200,
            // Of a GPU with 200 GB/s and 2 TFLOPS.
            submit_work: Cost { read_bytes: 40_000_000_000, written_bytes: 40_000_000_000, flops: 400_000_000_000 },
        };
        if !info.is_cpu() {
            return general;
        }
        let cpu = Tuning::of_software(info, general);
        if !info.has_scalars() {
            return cpu;
        }
        // Each invocation takes whole rows (see matvec.glsl): activations are then the same for all of them, one load
        // and no gather, and a weight decoded once serves up to 16 tokens. That is faster than tiles whatever the number
        // of tokens, and many times faster than matrix units, which this driver computes element by element.
        Tuning {
            matvec_rows: [2 * cpu.matvec; 2],
            matvec_columns: &[1, 2, 4, 8, 16],
            matmul_from: NEVER,
            experts_matmul_from: NEVER,
            matrix: cpu.matrix.map(|tiles| MatrixTiles { from: NEVER, experts_from: NEVER, ..tiles }),
            ..cpu
        }
    }

    /// The sizes for a driver that runs on the processor.
    fn of_software(info: &DeviceInfo, general: Tuning) -> Tuning {
        // Software runs a subgroup as one thread of vector instructions and is bound by loads: few invocations with
        // much work each. It also compiles slowly, so there are fewer variants.
        Tuning {
            elementwise: 64,
            norm: 32,
            attention: 64,
            attention_groups: 4,
            attention_split: 512,
            prompt: PromptTile { workgroup: 64, rows: 32, block: 32, thread_rows: 4 },
            // Computed element by element, and slower than what the processor's vector instructions do.
            prompt_on_matrix: false,
            prompt_groups: 4,
            route: 64,
            matvec: info.subgroup_size,
            matvec_rows: [8, 4],
            dot_rows: [4, 4],
            dot_from: general.dot_from,
            matvec_columns: &[1, 2, 4, 8],
            matmul_from: 48,
            matmul: MatmulTile { thread_tokens: 8, ..general.matmul },
            experts_matmul_from: 16,
            experts: MatmulTile { thread_rows: 8, ..general.experts },
            half_rows: 64,
            ..general
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrower_tiles_are_chosen_where_wide_ones_would_leave_the_device_idle() {
        let shape = MatrixShape { m: 16, n: 16, k: 16 };
        let tiles = [(16, 32, 16), (32, 32, 32), (64, 32, 32), (128, 64, 32), (256, 64, 64)].map(
            |(block_tokens, wave_rows, wave_tokens)| MatrixTile {
                shape,
                block_rows: 128,
                block_tokens,
                wave_rows,
                wave_tokens,
                tile_k: 32,
                buffers: 2,
                subgroup: 32,
            },
        );
        let tiles = MatrixTiles { from: 17, experts_from: 8, busy_groups: 40, tiles };
        let width = |n_rows, n_tokens| tiles.for_extent(Extent { n_rows, n_tokens }).block_tokens;
        // Rows enough: the tokens decide.
        assert_eq!([17, 32, 64, 128, 512, 1023, 1024].map(|n| width(1 << 20, n)), [32, 32, 64, 128, 128, 128, 256]);
        // 512 rows are 4 blocks: 16 workgroups of 128 tokens, 32 of 64.
        assert_eq!([width(512, 512), width(4096, 512)], [64, 128]);
        // Whatever the shape, a narrower tile never leaves more of the device idle than the wider one it stands for.
        for n_rows in [1, 128, 512, 896, 2880, 4096, 201_088] {
            for n_tokens in (17..2048).step_by(13) {
                let [chosen, many] = [n_rows, 1 << 20].map(|rows| width(rows, n_tokens));
                assert!(chosen <= many, "{n_rows} rows, {n_tokens} tokens: {chosen}, {many}");
            }
        }
    }
}
