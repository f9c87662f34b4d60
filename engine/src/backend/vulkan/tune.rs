//! The sizes of [`Tuning`] that can be measured on a device ([`KNOBS`]), and the user's file of what was chosen, one
//! per device and driver. A file that is damaged, of another version, or holds values that are no candidates is not
//! used, and says so; without a file the shipped table holds.
//!
//! A new size of a kernel is one more entry of [`KNOBS`]: what it is called, whose time decides, what to try.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::attention_tiles::{MatrixPromptTile, PromptTile};
use super::device::Device;
use super::instance::DeviceInfo;
use super::pipelines::{cache_folder, device_name};
use super::tuning::{MatmulTile, MatrixTile, NEVER, Tuning};

/// Version of the file's form and of the meaning of its values.
const VERSION: u32 = 1;
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 16;
/// Workgroups that attention is split into at most: its results' memory is made for as many.
pub(super) const MAX_ATTENTION_GROUPS: usize = 640;

/// A value of a knob: one number, or those of a tile or a list.
pub type Value = Vec<u32>;

/// A size that can be measured.
pub struct Knob {
    /// Its name in the file.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Parts of names of the kernels whose time decides.
    pub kernels: &'static [&'static str],
    /// Passes of so many sequences with a token each that it is measured in.
    pub columns: &'static [usize],
    /// Lengths of prompts that it is measured in; software devices take an eighth.
    pub prompts: &'static [usize],
    /// Whether it matters only behind contexts that are many times as long as usual.
    pub deep: bool,
    candidates: fn(&DeviceInfo) -> Vec<Value>,
    get: fn(&Tuning) -> Value,
    set: fn(&mut Tuning, &[u32]),
}

impl Knob {
    /// What can be chosen on a device; nothing where the device lacks what it is about.
    pub fn candidates(&self, info: &DeviceInfo) -> Vec<Value> {
        (self.candidates)(info)
    }

    /// Its value in `tuning`.
    pub fn value(&self, tuning: &Tuning) -> Value {
        (self.get)(tuning)
    }

    /// `tuning` with another value of it.
    pub fn with(&self, tuning: &Tuning, value: &[u32]) -> Tuning {
        let mut tuning = *tuning;
        (self.set)(&mut tuning, value);
        tuning
    }

    /// The knob of that name.
    pub fn find(name: &str) -> Option<&'static Knob> {
        KNOBS.iter().find(|k| k.name == name)
    }
}

fn numbers(values: &[u32]) -> Vec<Value> {
    values.iter().map(|v| vec![*v]).collect()
}

/// Numbers for a GPU, and for a software device, whose workgroups do better small.
fn by_kind(info: &DeviceInfo, gpu: &[u32], cpu: &[u32]) -> Vec<Value> {
    numbers(if info.is_cpu() { cpu } else { gpu })
}

/// Columns that the matrix–vector kernels can be compiled for.
static COLUMNS: [&[u32]; 6] =
    [&[1, 2, 4, 8, 16], &[1, 2, 4, 8], &[1, 2, 4], &[1, 4], &[1, 4, 8], &[1, 2, 3, 4, 5, 6, 7, 8, 16]];

/// Numbers of tokens from which on products run in integers; the largest is none.
const DOT_FROM: [[u32; 2]; 4] = [[1, 2], [1, 1], [2, 2], [u32::MAX, u32::MAX]];

/// Tiles that fit the device: rows and tokens of a workgroup, then of an invocation.
fn tiles(info: &DeviceInfo) -> Vec<Value> {
    let all: [[u32; 4]; 8] = [
        [64, 64, 8, 4],
        [64, 64, 4, 4],
        [64, 64, 8, 8],
        [128, 64, 8, 8],
        [64, 32, 4, 4],
        [64, 32, 8, 4],
        [32, 64, 4, 4],
        [32, 32, 4, 2],
    ];
    let fits = |t: &MatmulTile| t.shared_bytes() <= info.shared_bytes && (32..=256).contains(&t.workgroup());
    all.into_iter().filter(|t| fits(&tile(t))).map(|t| t.to_vec()).collect()
}

fn tile(v: &[u32]) -> MatmulTile {
    MatmulTile { block_rows: v[0], block_tokens: v[1], thread_rows: v[2], thread_tokens: v[3] }
}

fn tile_value(t: MatmulTile) -> Value {
    vec![t.block_rows, t.block_tokens, t.thread_rows, t.thread_tokens]
}

/// Numbers for a device with matrix units; others have no choice.
fn of_matrices(info: &DeviceInfo, values: &[u32]) -> Vec<Value> {
    if Tuning::of(info).matrix.is_some() { numbers(values) } else { Vec::new() }
}

/// Tiles of matrix units that fit the device.
fn matrix_tiles(info: &DeviceInfo) -> impl Iterator<Item = MatrixTile> {
    // Rows and tokens of a workgroup, then of a subgroup; weights of a row at a time; buffers.
    const GPU: [[u32; 6]; 8] = [
        [128, 128, 64, 32, 32, 2],
        [128, 128, 64, 32, 32, 1],
        [128, 128, 64, 32, 64, 1],
        [128, 128, 32, 64, 32, 2],
        [128, 256, 64, 64, 32, 2],
        [128, 256, 64, 64, 32, 1],
        [64, 128, 32, 32, 32, 2],
        [64, 64, 32, 32, 32, 2],
    ];
    const SOFTWARE: [[u32; 6]; 3] = [[64, 64, 16, 16, 32, 1], [32, 32, 16, 16, 32, 1], [64, 32, 16, 16, 32, 1]];
    let all = if info.is_cpu() { &SOFTWARE[..] } else { &GPU[..] };
    let shipped = Tuning::of(info).matrix.map(|m| m.tiles[3]);
    let tiles = shipped.into_iter().flat_map(|t| all.iter().map(move |v| with_matrix_value(t, v)));
    tiles.filter(|t| t.fits(info))
}

/// Tiles of matrix units that fit the device, of as many tokens as the shipped one in that place.
fn narrow_tiles(info: &DeviceInfo, place: usize) -> Vec<Value> {
    // Rows of a workgroup, then of a subgroup; the share of the tokens that is a subgroup's; weights of a row at a time;
    // buffers.
    const ALL: [[u32; 5]; 8] = [
        [128, 32, 1, 32, 2],
        [128, 32, 1, 64, 1],
        [128, 32, 2, 32, 2],
        [64, 32, 1, 32, 2],
        [64, 32, 1, 64, 1],
        [64, 32, 2, 32, 2],
        [32, 32, 2, 32, 2],
        [32, 32, 2, 64, 1],
    ];
    let Some(shipped) = Tuning::of(info).matrix.map(|m| m.tiles[place]) else { return Vec::new() };
    let tokens = shipped.block_tokens;
    let tiles = ALL.map(|[rows, wave_rows, parts, tile_k, buffers]| {
        with_matrix_value(shipped, &[rows, tokens, wave_rows, tokens / parts, tile_k, buffers])
    });
    let mut fitting: Vec<Value> =
        tiles.into_iter().chain([shipped]).filter(|t| t.fits(info)).map(|t| matrix_value(&t)).collect();
    fitting.sort_unstable();
    fitting.dedup();
    fitting
}

fn set_matrix_tile(tuning: &mut Tuning, place: usize, v: &[u32]) {
    if let Some(m) = &mut tuning.matrix {
        m.tiles[place] = with_matrix_value(m.tiles[place], v);
    }
}

fn with_matrix_value(tile: MatrixTile, v: &[u32]) -> MatrixTile {
    let [block_rows, block_tokens, wave_rows, wave_tokens, tile_k, buffers] = [v[0], v[1], v[2], v[3], v[4], v[5]];
    MatrixTile { block_rows, block_tokens, wave_rows, wave_tokens, tile_k, buffers, ..tile }
}

fn matrix_value(t: &MatrixTile) -> Value {
    vec![t.block_rows, t.block_tokens, t.wave_rows, t.wave_tokens, t.tile_k, t.buffers]
}

/// Tiles of the attention of prompts that fit the device with heads of 64 elements: invocations, query rows, positions,
/// query rows of an invocation.
fn prompt_tiles(info: &DeviceInfo) -> Vec<Value> {
    let gpu =
        [[128, 32, 32, 4], [64, 32, 32, 4], [256, 64, 32, 4], [128, 64, 32, 4], [128, 64, 32, 8], [128, 32, 64, 4]];
    let software =
        [[64, 32, 32, 4], [32, 32, 32, 4], [32, 32, 16, 8], [64, 64, 16, 8], [16, 32, 16, 8], [16, 16, 16, 4]];
    let all = if info.is_cpu() { software } else { gpu };
    let fits = |t: PromptTile| t.is_sound() && t.shared_bytes(64) <= info.shared_bytes;
    all.into_iter().filter(|v| fits(prompt_tile(v))).map(|v| v.to_vec()).collect()
}

/// The same on matrix units: query rows, positions, query rows of a subgroup, and whether it is used at all.
fn matrix_prompt_tiles(info: &DeviceInfo) -> Vec<Value> {
    let gpu = [[128, 32], [64, 32], [128, 64], [64, 64], [128, 16]];
    let software = [[32, 16], [32, 32]];
    let all = if info.is_cpu() { &software[..] } else { &gpu[..] };
    let Some(shipped) = MatrixPromptTile::of(info) else { return Vec::new() };
    let tiles = all.iter().flat_map(|&[rows, block]| {
        let wave_rows = [shipped.wave_rows, 2 * shipped.wave_rows];
        wave_rows.map(|wave_rows| MatrixPromptTile { rows, block, wave_rows, ..shipped })
    });
    let usable = tiles.filter(|t| t.is_sound() && t.shared_bytes(64) <= info.shared_bytes);
    let unused = matrix_prompt_value(&shipped, false);
    usable.map(|t| matrix_prompt_value(&t, true)).chain([unused]).collect()
}

fn matrix_prompt_value(t: &MatrixPromptTile, is_used: bool) -> Value {
    vec![t.rows, t.block, t.wave_rows, u32::from(is_used)]
}

fn prompt_tile(v: &[u32]) -> PromptTile {
    PromptTile { workgroup: v[0], rows: v[1], block: v[2], thread_rows: v[3] }
}

fn prompt_value(t: PromptTile) -> Value {
    vec![t.workgroup, t.rows, t.block, t.thread_rows]
}

/// Every size that can be measured, in the order in which they are.
pub static KNOBS: [Knob; 31] = [
    Knob {
        name: "matvec",
        what: "invocations per workgroup of matrix–vector products",
        kernels: &["matvec"],
        columns: &[1, 4],
        prompts: &[],
        deep: false,
        candidates: |info| {
            let s = info.subgroup_size;
            let mut all = if info.is_cpu() { vec![s, 2 * s, 4 * s] } else { vec![32, 64, 128, s] };
            all.sort_unstable();
            all.dedup();
            numbers(&all)
        },
        get: |t| vec![t.matvec],
        set: |t, v| t.matvec = v[0],
    },
    Knob {
        name: "matvec_rows.narrow",
        what: "rows per workgroup of products of one or two columns in f32",
        kernels: &["matvec"],
        columns: &[1, 2],
        prompts: &[],
        deep: false,
        candidates: |info| by_kind(info, &[1, 2, 4, 8], &[2, 4, 8, 16]),
        get: |t| vec![t.matvec_rows[0]],
        set: |t, v| t.matvec_rows[0] = v[0],
    },
    Knob {
        name: "matvec_rows.wide",
        what: "rows per workgroup of products of more columns in f32",
        kernels: &["matvec"],
        columns: &[4, 8, 16],
        prompts: &[],
        deep: false,
        candidates: |info| by_kind(info, &[1, 2, 4], &[1, 2, 4, 8, 16]),
        get: |t| vec![t.matvec_rows[1]],
        set: |t, v| t.matvec_rows[1] = v[0],
    },
    Knob {
        name: "dot_from",
        what: "tokens from which on products run in integers, after a norm and elsewhere",
        kernels: &["matvec", "norm", "quantize"],
        columns: &[1, 2, 4],
        prompts: &[],
        deep: false,
        candidates: |_| DOT_FROM.map(|v| v.to_vec()).to_vec(),
        get: |t| t.dot_from.map(|n| u32::try_from(n).unwrap_or(u32::MAX)).to_vec(),
        set: |t, v| t.dot_from = [v[0], v[1]].map(|n| if n == u32::MAX { usize::MAX } else { n as usize }),
    },
    Knob {
        name: "dot_rows.narrow",
        what: "rows per workgroup of products of one or two columns in integers",
        kernels: &["matvec"],
        columns: &[1, 2],
        prompts: &[],
        deep: false,
        candidates: |_| numbers(&[1, 2, 4, 8]),
        get: |t| vec![t.dot_rows[0]],
        set: |t, v| t.dot_rows[0] = v[0],
    },
    Knob {
        name: "dot_rows.wide",
        what: "rows per workgroup of products of more columns in integers",
        kernels: &["matvec"],
        columns: &[4, 8, 16],
        prompts: &[],
        deep: false,
        candidates: |_| numbers(&[1, 2, 4]),
        get: |t| vec![t.dot_rows[1]],
        set: |t, v| t.dot_rows[1] = v[0],
    },
    Knob {
        name: "matvec_columns",
        what: "numbers of columns that matrix–vector kernels are compiled for",
        kernels: &["matvec"],
        columns: &[2, 3, 5, 8, 9, 16],
        prompts: &[],
        deep: false,
        candidates: |_| COLUMNS.iter().map(|c| c.to_vec()).collect(),
        get: |t| t.matvec_columns.to_vec(),
        set: |t, v| t.matvec_columns = COLUMNS.iter().find(|c| **c == v).copied().unwrap_or(t.matvec_columns),
    },
    Knob {
        name: "matmul",
        what: "tile of the products of many tokens",
        kernels: &["matmul"],
        columns: &[],
        prompts: &[512],
        deep: false,
        candidates: tiles,
        get: |t| tile_value(t.matmul),
        set: |t, v| t.matmul = tile(v),
    },
    Knob {
        name: "matmul_from",
        what: "tokens from which on the tiled product is used",
        kernels: &["mat"],
        columns: &[12, 24, 32, 48],
        prompts: &[],
        deep: false,
        candidates: |_| numbers(&[9, 17, 33, 49, 65, NEVER as u32]),
        get: |t| vec![t.matmul_from as u32],
        set: |t, v| t.matmul_from = v[0] as usize,
    },
    Knob {
        name: "experts",
        what: "tile of the experts' products of many tokens",
        kernels: &["matmul"],
        columns: &[],
        prompts: &[512],
        deep: false,
        candidates: tiles,
        get: |t| tile_value(t.experts),
        set: |t, v| t.experts = tile(v),
    },
    Knob {
        name: "experts_matmul_from",
        what: "mean tokens of an expert from which on the tiled product is used",
        kernels: &["mat"],
        columns: &[48],
        prompts: &[64, 128, 256],
        deep: false,
        candidates: |_| numbers(&[2, 4, 8, 16, 32, NEVER as u32]),
        get: |t| vec![t.experts_matmul_from as u32],
        set: |t, v| t.experts_matmul_from = v[0] as usize,
    },
    Knob {
        name: "matrix.narrow",
        what: "tile of the products of 17 to 32 tokens, or so many of an expert, on matrix units",
        kernels: &["f16_"],
        // Where fewer tokens are products in integers, it is used for few rows and for experts.
        columns: &[48],
        prompts: &[256],
        deep: false,
        candidates: |info| narrow_tiles(info, 1),
        get: |t| t.matrix.iter().flat_map(|m| matrix_value(&m.tiles[1])).collect(),
        set: |t, v| set_matrix_tile(t, 1, v),
    },
    Knob {
        name: "matrix.middle",
        what: "the same of 33 to 64 tokens",
        kernels: &["f16_"],
        columns: &[48, 64],
        prompts: &[],
        deep: false,
        candidates: |info| narrow_tiles(info, 2),
        get: |t| t.matrix.iter().flat_map(|m| matrix_value(&m.tiles[2])).collect(),
        set: |t, v| set_matrix_tile(t, 2, v),
    },
    Knob {
        name: "matrix.wide",
        what: "tile of the products of many tokens on matrix units",
        kernels: &["f16_"],
        columns: &[],
        prompts: &[512],
        deep: false,
        candidates: |info| matrix_tiles(info).map(|t| matrix_value(&t)).collect(),
        get: |t| t.matrix.iter().flat_map(|m| matrix_value(&m.tiles[3])).collect(),
        set: |t, v| set_matrix_tile(t, 3, v),
    },
    Knob {
        name: "matrix.widest",
        what: "the same of prompts that are four times as wide or more",
        kernels: &["f16_"],
        columns: &[],
        prompts: &[1024],
        deep: false,
        candidates: |info| matrix_tiles(info).map(|t| matrix_value(&t)).collect(),
        get: |t| t.matrix.iter().flat_map(|m| matrix_value(&m.tiles[4])).collect(),
        set: |t, v| set_matrix_tile(t, 4, v),
    },
    Knob {
        name: "matrix.busy_groups",
        what: "workgroups below which narrower tiles are chosen",
        kernels: &["f16_"],
        columns: &[],
        prompts: &[128, 512],
        deep: false,
        candidates: |info| of_matrices(info, &[1, 20, 40, 80, 160]),
        get: |t| t.matrix.iter().map(|m| m.busy_groups as u32).collect(),
        set: |t, v| t.matrix.iter_mut().for_each(|m| m.busy_groups = v[0] as usize),
    },
    Knob {
        name: "matrix.from",
        what: "tokens from which on matrix units are used",
        kernels: &["mat"],
        columns: &[12, 24, 32, 48],
        prompts: &[],
        deep: false,
        candidates: |info| of_matrices(info, &[9, 17, 33, 65, NEVER as u32]),
        get: |t| t.matrix.iter().map(|m| m.from as u32).collect(),
        set: |t, v| t.matrix.iter_mut().for_each(|m| m.from = v[0] as usize),
    },
    Knob {
        name: "matrix.experts_from",
        what: "mean tokens of an expert from which on matrix units are used",
        kernels: &["mat"],
        columns: &[48],
        prompts: &[64, 128, 256],
        deep: false,
        candidates: |info| of_matrices(info, &[2, 4, 8, 16, 32, NEVER as u32]),
        get: |t| t.matrix.iter().map(|m| m.experts_from as u32).collect(),
        set: |t, v| t.matrix.iter_mut().for_each(|m| m.experts_from = v[0] as usize),
    },
    Knob {
        name: "attention",
        what: "invocations per workgroup of attention",
        kernels: &["attention"],
        columns: &[1, 8],
        prompts: &[],
        deep: false,
        candidates: |info| by_kind(info, &[64, 128, 256], &[64, 128]),
        get: |t| vec![t.attention],
        set: |t, v| t.attention = v[0],
    },
    Knob {
        name: "attention_subgroup",
        what: "invocations per subgroup of attention",
        kernels: &["attention"],
        columns: &[1, 8],
        prompts: &[],
        deep: false,
        candidates: |info| {
            let (smallest, largest) = info.subgroup_sizes;
            let all: Vec<u32> = [32, 64].into_iter().filter(|n| (smallest..=largest).contains(n)).collect();
            if all.len() > 1 { numbers(&all) } else { Vec::new() }
        },
        get: |t| vec![t.attention_subgroup],
        set: |t, v| t.attention_subgroup = v[0],
    },
    Knob {
        name: "attention_groups",
        what: "workgroups that attention over long contexts is split into",
        kernels: &["attention"],
        columns: &[1, 4],
        prompts: &[],
        deep: true,
        candidates: |info| by_kind(info, &[80, 160, 320, MAX_ATTENTION_GROUPS as u32], &[2, 4, 8, 16]),
        get: |t| vec![t.attention_groups as u32],
        set: |t, v| t.attention_groups = v[0] as usize,
    },
    Knob {
        name: "attention_split",
        what: "positions that a part of a split attention has at least",
        kernels: &["attention"],
        columns: &[1, 4],
        prompts: &[],
        deep: true,
        candidates: |_| numbers(&[64, 128, 256, 512]),
        get: |t| vec![t.attention_split as u32],
        set: |t, v| t.attention_split = v[0] as usize,
    },
    Knob {
        name: "prompt_attention",
        what: "tile of the attention of prompts",
        kernels: &["f32_anykv_prompt_attention"],
        columns: &[],
        prompts: &[512],
        deep: false,
        candidates: prompt_tiles,
        get: |t| prompt_value(t.prompt),
        set: |t, v| t.prompt = prompt_tile(v),
    },
    Knob {
        name: "matrix.prompt_attention",
        what: "tile of the attention of prompts on matrix units, and whether it is used",
        kernels: &["prompt_attention"],
        columns: &[],
        prompts: &[512],
        deep: false,
        candidates: matrix_prompt_tiles,
        get: |t| t.prompt_matrix.iter().flat_map(|m| matrix_prompt_value(m, t.prompt_on_matrix)).collect(),
        set: |t, v| {
            if let Some(m) = &mut t.prompt_matrix {
                (m.rows, m.block, m.wave_rows) = (v[0], v[1], v[2]);
                t.prompt_on_matrix = v[3] != 0;
            }
        },
    },
    Knob {
        name: "prompt_attention.from",
        what: "query rows of a sequence from which on its attention is computed in tiles",
        kernels: &["attention"],
        columns: &[],
        prompts: &[16, 64],
        deep: false,
        candidates: |_| numbers(&[32, 64, 128, 256, NEVER as u32]),
        get: |t| vec![t.prompt_from as u32],
        set: |t, v| t.prompt_from = v[0] as usize,
    },
    Knob {
        name: "prompt_attention.groups",
        what: "workgroups that attention of short prompts over long contexts is split into",
        kernels: &["attention"],
        columns: &[],
        prompts: &[64, 512],
        deep: false,
        candidates: |info| by_kind(info, &[1, 30, 60, 120, 240], &[1, 2, 4, 8]),
        get: |t| vec![t.prompt_groups as u32],
        set: |t, v| t.prompt_groups = v[0] as usize,
    },
    Knob {
        name: "norm",
        what: "invocations per workgroup of norms",
        kernels: &["norm"],
        columns: &[1, 8],
        prompts: &[],
        deep: false,
        candidates: |info| by_kind(info, &[64, 128, 256], &[8, 32, 64]),
        get: |t| vec![t.norm],
        set: |t, v| t.norm = v[0],
    },
    Knob {
        name: "place_heads",
        what: "invocations per workgroup that norms, rotates and stores a head",
        kernels: &["place_heads"],
        columns: &[1, 8],
        prompts: &[],
        deep: false,
        candidates: |_| numbers(&[32, 64, 128]),
        get: |t| vec![t.place_heads],
        set: |t, v| t.place_heads = v[0],
    },
    Knob {
        name: "route",
        what: "invocations of the workgroup that chooses experts",
        kernels: &["moe_route"],
        columns: &[1, 8],
        prompts: &[256],
        deep: false,
        candidates: |info| by_kind(info, &[64, 128, 256], &[32, 64, 128]),
        get: |t| vec![t.route],
        set: |t, v| t.route = v[0],
    },
    Knob {
        name: "half_rows",
        what: "invocations per workgroup that makes f16 of a row",
        kernels: &["half_rows"],
        columns: &[48],
        prompts: &[512],
        deep: false,
        candidates: |info| match Tuning::of(info).matrix {
            Some(_) => by_kind(info, &[64, 128, 256], &[32, 64, 128]),
            None => Vec::new(),
        },
        get: |t| vec![t.half_rows],
        set: |t, v| t.half_rows = v[0],
    },
    Knob {
        name: "elementwise",
        what: "invocations per workgroup of element-wise kernels",
        kernels: &["quantize", "embed", "gather", "moe_sum", "swiglu", "scale_by_sigmoid"],
        columns: &[1, 8],
        prompts: &[256],
        deep: false,
        candidates: |info| by_kind(info, &[64, 128, 256], &[32, 64, 128]),
        get: |t| vec![t.elementwise],
        set: |t, v| t.elementwise = v[0],
    },
];

/// The file of a device.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    device: String,
    driver: String,
    values: BTreeMap<String, Value>,
}

/// What the user's file says of a device.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Where it is, or would be; `None` on systems without a home.
    pub path: Option<PathBuf>,
    /// Chosen values by knob.
    pub values: BTreeMap<String, Value>,
    /// Why the file, or a part of it, is not used.
    pub problem: Option<String>,
}

impl Stored {
    /// Reads the file of `device`.
    pub(super) fn of(device: &Device) -> Stored {
        let Some(path) = path(device) else { return Stored::default() };
        let (values, problem) = match read(&path, &device.info) {
            Ok(values) => (values, None),
            Err(problem) => {
                (BTreeMap::new(), problem.map(|p| format!("{}: {p}; the shipped sizes are used", path.display())))
            }
        };
        Stored { path: Some(path), values, problem }
    }

    /// The tuning with the stored values in place of the shipped ones.
    pub fn apply(&self, tuning: Tuning) -> Tuning {
        let known = self.values.iter().filter_map(|(name, value)| Some((Knob::find(name)?, value)));
        known.fold(tuning, |tuning, (knob, value)| knob.with(&tuning, value))
    }

    /// Replaces the file's values.
    ///
    /// # Errors
    /// There is no place for the file, or it can't be written.
    pub(super) fn write(device: &Device, values: &BTreeMap<String, Value>) -> std::io::Result<PathBuf> {
        let path = path(device).ok_or_else(|| std::io::Error::other("there is no cache folder: set XDG_CACHE_HOME"))?;
        let (name, driver) = (device.info.name.clone(), device.info.driver.clone());
        let file = File { version: VERSION, device: name, driver, values: values.clone() };
        let text = serde_json::to_string_pretty(&file).map_err(std::io::Error::other)?;
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let draft = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::write(&draft, text + "\n").and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            _ = fs::remove_file(&draft);
        }
        written.map(|()| path)
    }
}

fn path(device: &Device) -> Option<PathBuf> {
    Some(cache_folder()?.join(format!("tuning-{}.json", device_name(device))))
}

/// The file's values; `Err(None)` where there is no file.
fn read(path: &Path, info: &DeviceInfo) -> Result<BTreeMap<String, Value>, Option<String>> {
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(None),
        Err(e) => return Err(Some(e.to_string())),
        Ok(m) if m.len() > MAX_BYTES => return Err(Some(format!("{} bytes, at most {MAX_BYTES} are read", m.len()))),
        Ok(_) => {}
    }
    let text = fs::read_to_string(path).map_err(|e| Some(e.to_string()))?;
    parse(&text, info).map_err(Some)
}

fn parse(text: &str, info: &DeviceInfo) -> Result<BTreeMap<String, Value>, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_str(text).map_err(|e| format!("damaged: {e}"))?;
    if head.version != VERSION {
        return Err(format!("of version {}, this program reads {VERSION}", head.version));
    }
    let file: File = serde_json::from_str(text).map_err(|e| format!("damaged: {e}"))?;
    for (name, value) in &file.values {
        let Some(knob) = Knob::find(name) else { return Err(format!("no size is called {name:?}")) };
        if !knob.candidates(info).contains(value) {
            return Err(format!("{name} can't be {value:?} on this device"));
        }
    }
    Ok(file.values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vulkan::devices;

    #[test]
    fn every_candidate_can_be_set_and_read_back() {
        let Ok(all) = devices() else { return };
        for info in all.iter().filter(|d| d.is_usable()) {
            let shipped = Tuning::of(info);
            for knob in &KNOBS {
                let candidates = knob.candidates(info);
                let needs_matrices = knob.name.starts_with("matrix.") || knob.name == "half_rows";
                let has_choice = match knob.name {
                    "attention_subgroup" => info.subgroup_sizes.0 <= 32 && info.subgroup_sizes.1 >= 64,
                    _ => !needs_matrices || shipped.matrix.is_some(),
                };
                assert_eq!(candidates.len() > 1, has_choice, "{}", knob.name);
                assert_eq!(candidates.is_empty(), !has_choice, "{}", knob.name);
                for value in candidates {
                    assert_eq!(knob.value(&knob.with(&shipped, &value)), value, "{}", knob.name);
                }
                assert!(!(knob.columns.is_empty() && knob.prompts.is_empty()), "{} is measured somewhere", knob.name);
            }
        }
    }

    #[test]
    fn files_that_are_not_whole_or_not_right_are_refused() {
        let Some(info) = devices().ok().and_then(|all| all.into_iter().find(DeviceInfo::is_usable)) else { return };
        let text = |version: u32, values: &str| {
            format!(r#"{{"version": {version}, "device": "d", "driver": "e", "values": {{{values}}}}}"#)
        };
        let good = text(VERSION, r#""matvec_rows.narrow": [4], "matvec_columns": [1, 4]"#);
        let values = parse(&good, &info).expect("read");
        let stored = Stored { values, ..Stored::default() };
        let tuning = stored.apply(Tuning::of(&info));
        assert_eq!((tuning.matvec_rows[0], tuning.matvec_columns), (4, &[1, 4][..]));
        for n in 0..good.len() {
            assert!(parse(&good[..n], &info).is_err(), "cut to {n} bytes");
        }
        let refused = |text: String, part: &str| {
            let problem = parse(&text, &info).expect_err("refused");
            assert!(problem.contains(part), "{problem}");
        };
        refused(text(VERSION + 1, ""), "version");
        refused(text(VERSION, r#""matvec_rows.narrow": [3]"#), "matvec_rows.narrow can't be [3]");
        refused(text(VERSION, r#""matvec_rows.narrow": []"#), "can't be []");
        refused(text(VERSION, r#""no_such": [3]"#), "no_such");
    }
}
