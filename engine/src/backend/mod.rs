//! The ops a forward pass is written in, and the two backends that carry them out: `cpu` (the oracle, and the
//! fallback on machines without a GPU) and `vulkan`.
//!
//! Activations live in a fixed set of named buffers ([`Act`]), each `[n_tokens, width] f32, row-major`, allocated
//! once for the largest batch. An op names the buffers it reads and writes; nothing is allocated during a pass.

pub mod cpu;
pub mod vulkan;

use crate::error::Error;
use crate::gguf::GgmlType;
use crate::kv::{KvLayout, KvOptions, KvPages, PageCopy};
use crate::model::{Config, ExpertWeights, RopeTable};

/// An activation buffer. Row = one token of the batch (for `Logits` and `Out`: one row per requested output).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Residual stream, `[n_tokens, n_embd]`.
    X,
    /// Normed input of a block, `[n_tokens, n_embd]`.
    H,
    /// Queries, `[n_tokens, q_dim]`.
    Q,
    /// Keys, `[n_tokens, kv_dim]`.
    K,
    /// Values, `[n_tokens, kv_dim]`.
    V,
    /// Attention output before its projection, `[n_tokens, q_dim]`.
    Attn,
    /// Gate of the dense (or the shared expert's) feed-forward layer, then the activated product, `[n_tokens, n_ff]`.
    Gate,
    /// Up projection, `[n_tokens, n_ff]`.
    Up,
    /// Logits of the experts, `[n_tokens, n_expert]`.
    Router,
    /// Logit of the shared expert's gate, `[n_tokens, 1]`.
    SharedGate,
    /// Residual rows whose logits are wanted, `[n_outputs, n_embd]`.
    Out,
    /// Logits, `[n_outputs, n_vocab]`.
    Logits,
}

impl Act {
    /// All buffers.
    pub const ALL: [Act; 12] = [
        Act::X,
        Act::H,
        Act::Q,
        Act::K,
        Act::V,
        Act::Attn,
        Act::Gate,
        Act::Up,
        Act::Router,
        Act::SharedGate,
        Act::Out,
        Act::Logits,
    ];

    /// Elements per row in layer `il`; 0 where the model has no such activation.
    pub fn width(self, c: &Config, il: usize) -> usize {
        match self {
            Act::X | Act::H | Act::Out => c.n_embd,
            Act::Q | Act::Attn => c.q_dim(il),
            Act::K | Act::V => c.kv_dim(il),
            Act::Gate | Act::Up => c.layers[il].n_ff,
            Act::Router => c.moe.map_or(0, |m| m.n_expert),
            Act::SharedGate => usize::from(c.moe.is_some() && c.layers[il].n_ff > 0),
            Act::Logits => c.n_vocab,
        }
    }

    /// Elements per row in the widest layer: what a buffer is made for.
    pub fn max_width(self, c: &Config) -> usize {
        (0..c.n_layer()).map(|il| self.width(c, il)).max().unwrap_or(0)
    }
}

/// Sizes fixed when a backend is created.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most tokens in one pass (llama.cpp's `n_ubatch`).
    pub n_batch: usize,
    /// Most rows of logits in one pass.
    pub n_outputs: usize,
    /// Sequences that can be live at once.
    pub n_seq: usize,
    /// Positions per sequence (context length).
    pub n_ctx: usize,
    /// How keys and values are stored.
    pub kv: KvOptions,
    /// Most bytes of keys and values; `None` for all that the sequences could fill.
    pub kv_bytes: Option<u64>,
}

/// One token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchToken {
    /// Token id, below `n_vocab`.
    pub token: u32,
    /// Sequence, below `Limits::n_seq`.
    pub seq: u32,
    /// Position in its sequence, below `Limits::n_ctx`. All earlier positions of the sequence must have been stored by
    /// earlier passes or stand earlier in this batch.
    pub pos: u32,
    /// Whether logits are wanted for this token.
    pub output: bool,
}

/// What a tensor is in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A vector (a norm, a bias), or one for each expert.
    Vector,
    /// A matrix.
    Matrix,
    /// The gate of a dense feed-forward layer, which is multiplied together with its up matrix.
    Gate,
    /// That up matrix.
    Up,
    /// A matrix for each expert.
    Experts,
}

/// A weight tensor as it lies in the file. `cols` is the contiguous dimension (ggml's `ne[0]`).
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// Name in the file, for messages.
    pub name: &'a str,
    /// What it is in the model.
    pub role: Role,
    /// Element type.
    pub ty: GgmlType,
    /// Rows (1 for a vector).
    pub rows: usize,
    /// Elements per row, a multiple of the type's block length.
    pub cols: usize,
    /// `rows * ty.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

/// One product of [`Backend::linear`]: `out = x · weightᵀ (+ bias)`, or `out += …` when `accumulate` is set.
pub struct Linear<'w, W> {
    /// `[rows, cols]`; `cols` is the width of the input, `rows` that of the output.
    pub weight: &'w W,
    /// `[rows]` f32.
    pub bias: Option<&'w W>,
    /// Destination.
    pub out: Act,
    /// Add to the destination (residual connection) instead of overwriting it.
    pub accumulate: bool,
}

/// A device that can run the forward pass. All methods between `begin` and `finish` may be deferred (recorded) by
/// the backend; `finish` waits for them. Ops see the rows of the current batch only.
pub trait Backend: Send {
    /// A weight that was made available to the device.
    type Weight: Send + Sync;

    /// Device name as shown to the user.
    fn name(&self) -> String;

    /// Makes a tensor available. The CPU backend keeps a view of the mapped file, and may repack it later; Vulkan copies.
    ///
    /// # Safety-relevant contract
    /// `tensor.data` stays mapped for as long as the backend lives: the `Model` owns both.
    fn upload(&mut self, tensor: TensorView<'static>) -> Result<Self::Weight, Error>;

    /// Allocates activations and the key/value cache. Called once, after the weights were uploaded.
    fn allocate(&mut self, config: &Config, limits: Limits, rope: &RopeTable, kv: &KvLayout) -> Result<(), Error>;

    /// Runs the ops of a pass, from `begin` on. A backend with worker threads moves `ops` to one of them.
    fn pass<R: Send>(&mut self, ops: impl FnOnce(&mut Self) -> R + Send) -> R {
        ops(self)
    }

    /// Starts a pass over `batch` (1 ..= `n_batch` tokens; at most `n_outputs` of them with `output`), whose tokens
    /// have their pages in `kv`.
    fn begin(&mut self, batch: &[BatchToken], kv: &KvPages) -> Result<(), Error>;

    /// Ops from here on belong to layer `il`: its head counts, widths, window and cache.
    fn begin_layer(&mut self, il: usize) -> Result<(), Error>;

    /// `X[t] = table[token[t]]`, dequantised to f32.
    fn embed(&mut self, table: &Self::Weight) -> Result<(), Error>;

    /// `dst[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight` (arXiv 1910.07467); the mean in f32.
    fn rms_norm(&mut self, x: Act, weight: &Self::Weight, dst: Act) -> Result<(), Error>;

    /// The same per head of `head_dim` elements, in place; `weight` is `[head_dim]` (Qwen3's QK-norm).
    fn head_norm(&mut self, x: Act, weight: &Self::Weight) -> Result<(), Error>;

    /// Several products with one input, accumulated in f32.
    fn linear(&mut self, x: Act, products: &[Linear<'_, Self::Weight>]) -> Result<(), Error>;

    /// Rotates each head of `x` by its token's position, in place, with the table given to `allocate`.
    fn rope(&mut self, x: Act) -> Result<(), Error>;

    /// Stores `K` and `V` of the batch in the layer's cache, rounded to its types.
    fn kv_store(&mut self) -> Result<(), Error>;

    /// What comes between the projections and attention: [`Self::head_norm`] of `Q` and `K` with the given weights,
    /// [`Self::rope`] of both, [`Self::kv_store`]. A backend that does it in one step need not leave the result in `K`.
    fn place_heads(&mut self, q_norm: Option<&Self::Weight>, k_norm: Option<&Self::Weight>) -> Result<(), Error> {
        for (act, norm) in [(Act::Q, q_norm), (Act::K, k_norm)] {
            if let Some(norm) = norm {
                self.head_norm(act, norm)?;
            }
            self.rope(act)?;
        }
        self.kv_store()
    }

    /// `Attn = softmax(Q·Kᵀ / sqrt(head_dim)) · V` over the positions of each token's sequence up to its own, no
    /// further back than the layer's window; query head `h` reads key/value head `h / (n_head / n_head_kv)`. `sinks`,
    /// `[n_head]`, is one more logit per head that takes part in the softmax and has no value (gpt-oss's model card;
    /// arXiv 2309.17453). Softmax in f32.
    fn attention(&mut self, sinks: Option<&Self::Weight>) -> Result<(), Error>;

    /// `Gate = silu(Gate) · Up`.
    fn swiglu(&mut self) -> Result<(), Error>;

    /// `Gate = silu(gate · x) · (up · x)`: two products of [`Self::linear`], then [`Self::swiglu`]. A backend that does
    /// it in one step need not leave anything in `Up`.
    fn gated(&mut self, x: Act, gate: &Self::Weight, up: &Self::Weight) -> Result<(), Error> {
        let product = |weight, out| Linear { weight, bias: None, out, accumulate: false };
        self.linear(x, &[product(gate, Act::Gate), product(up, Act::Up)])?;
        self.swiglu()
    }

    /// `x[t] = x[t] · sigmoid(gate[t, 0])`.
    fn scale_by_sigmoid(&mut self, x: Act, gate: Act) -> Result<(), Error>;

    /// Chooses each token's experts from its row of `Router`: the `n_expert_used` largest logits, the first of equal
    /// ones, and their weights in f32 as [`crate::model::MoeConfig`] says. The choice stays on the device.
    fn route(&mut self) -> Result<(), Error>;

    /// `X[t] += Σₑ w[t, e] · (down_e · act(gate_e · x[t] + b_gate, up_e · x[t] + b_up) + b_down)` over the experts that
    /// `route` chose for `t`. Each chosen expert's weights are read once for the whole batch.
    fn experts(&mut self, x: Act, experts: &ExpertWeights<Self::Weight>) -> Result<(), Error>;

    /// Copies the rows of `X` whose tokens asked for output to `Out`, in batch order. Ops after this one see
    /// `n_outputs` rows of `Out` and `Logits`.
    fn gather_outputs(&mut self) -> Result<(), Error>;

    /// Waits, and gives the logits of the requested tokens: `[n_outputs, n_vocab]` f32 in batch order.
    fn finish(&mut self) -> Result<&[f32], Error>;

    /// Copies whole pages of the cache, between passes.
    fn kv_copy_pages(&mut self, copies: &[PageCopy]) -> Result<(), Error>;
}
