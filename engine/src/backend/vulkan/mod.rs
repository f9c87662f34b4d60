//! The Vulkan backend: the forward pass as compute kernels on any device with Vulkan 1.3 (see `DeviceInfo::missing`
//! for what else it must have). A pass is recorded into one command buffer, submitted once and waited for.
//!
//! Refuses devices that lack a feature, models whose shapes the kernels don't handle, and anything that doesn't fit
//! the device's memory, before the first pass. Products are computed in f32 whatever the weight type, unless the device
//! is fast at something else and `exact` isn't asked for: those of a few tokens with quantised weights in integers, those
//! of many tokens on matrix units with f16 factors.
//! Activation rows are padded to a multiple of 8 elements, which stay zero: kernels read whole vec4s.

mod ahead;
mod attention_tiles;
mod commands;
mod device;
mod error;
mod gpu;
mod inspect;
mod instance;
pub mod kernels;
mod memory;
mod mix;
mod pace;
mod pipelines;
mod probe;
mod profile;
mod state;
mod taps;
pub mod tune;
mod tuning;
mod weights;

pub use attention_tiles::{MatrixPromptTile, PromptTile};
pub use commands::Cost;
pub use device::DeviceOptions;
pub use error::VulkanError;
pub use gpu::{DispatchTime, Gpu};
pub use inspect::{CodeReport, Inspector, compile_only_environment};
pub use instance::{DeviceInfo, DeviceKind, MatrixShape, best_real_gpu, devices};
pub use memory::{MemoryUse, Region};
pub use mix::InstructionMix;
pub use pipelines::Variant;
pub use probe::{Peaks, measure_peaks};
pub use profile::PassStats;
pub use shaders::write_sources as write_shader_sources;
pub use tuning::{Extent, MatmulTile, MatrixTile, MatrixTiles, Tuning};
pub use weights::{Weight, weight_type};

use kernels::gated::Gated;
use kernels::linear::{Method, Product};
use kernels::place_heads::Projections;
use kernels::quantize::QuantizedRows;
use kernels::{
    attention, embed, gated, gather, kv_store, linear, moe_sum, place_heads, quantize, rms_norm, rope, route,
    scale_by_sigmoid, swiglu,
};
use shaders::WeightType;

use super::{Act, Backend, BatchToken, Limits, Linear, TensorView};
use crate::error::Error;
use crate::kv::{KvLayout, KvPages, PageCopy};
use crate::model::{Activation, Config, ExpertWeights, RopeTable};
use ahead::Multiplied;
use state::ModelState;

/// A Vulkan device that runs forward passes.
pub struct Vulkan {
    gpu: Gpu,
    /// The matrices that were uploaded, to compile their kernels ahead.
    multiplied: Multiplied,
    model: Option<ModelState>,
    /// Where activations are looked at in the middle of a pass.
    tap: Option<Region>,
}

impl Vulkan {
    /// Opens the device with this index or part of a name; without a selector the best one (software last).
    /// `validation` turns the validation layer on: its messages become errors.
    pub fn new(selector: Option<&str>, validation: bool) -> Result<Vulkan, VulkanError> {
        Vulkan::open(DeviceOptions { selector, validation, ..DeviceOptions::default() })
    }

    /// Opens a device.
    pub fn open(options: DeviceOptions<'_>) -> Result<Vulkan, VulkanError> {
        Ok(Vulkan { gpu: Gpu::open(options)?, multiplied: Multiplied::default(), model: None, tap: None })
    }

    /// What device this is.
    pub fn info(&self) -> &DeviceInfo {
        self.gpu.info()
    }

    /// The device, to be looked at and measured between passes.
    pub fn gpu(&mut self) -> &mut Gpu {
        &mut self.gpu
    }

    /// Uses other sizes from the next pass on, of a model that may be allocated already.
    pub fn retune(&mut self, tuning: Tuning) {
        self.gpu.set_tuning(tuning);
    }

    /// Sizes of workgroups and tiles, and which kernels are used. To be changed before `allocate`.
    pub fn tuning(&self) -> &Tuning {
        self.gpu.tuning()
    }

    /// Uses other sizes and kernels.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        assert!(self.model.is_none(), "a tuning is chosen before `allocate`");
        self.gpu.set_tuning(tuning);
    }

    /// Whether a product of `x` with weights of type `ty` runs in integers. Then `x` is there in bytes: if no norm has
    /// left it so, and if the number of tokens is worth the launch, it is made here.
    fn put_in_bytes(&mut self, x: Act, ty: WeightType) -> Result<bool, VulkanError> {
        let (gpu, m) = self.parts();
        let rows = m.rows(x);
        if !Method::is_matvec(&gpu.tuning, ty, rows.n_rows) || !ty.is_quantised() {
            return Ok(false);
        }
        if m.in_bytes_of == Some(x) {
            return Ok(true);
        }
        if rows.n_rows < gpu.tuning.dot_from[1] {
            return Ok(false);
        }
        quantize::record(gpu, rows, m.bytes(x))?;
        self.model.as_mut().expect("it was there").in_bytes_of = Some(x);
        Ok(true)
    }

    /// What was left of `act` in bytes is no longer what it holds.
    fn overwrites(&mut self, act: Act) {
        let m = self.model.as_mut().expect("allocate comes before the first pass");
        m.in_bytes_of = m.in_bytes_of.filter(|&of| of != act);
    }

    /// The device and the model's state, for one op.
    fn parts(&mut self) -> (&mut Gpu, &ModelState) {
        (&mut self.gpu, self.model.as_ref().expect("allocate comes before the first pass"))
    }
}

impl Backend for Vulkan {
    type Weight = Weight;

    fn name(&self) -> String {
        let info = self.gpu.info();
        format!("Vulkan: {} ({})", info.name, info.driver)
    }

    fn upload(&mut self, tensor: TensorView<'static>) -> Result<Weight, Error> {
        let role = tensor.role;
        let weight = self.gpu.upload(tensor)?;
        self.multiplied.note(role, &weight);
        Ok(weight)
    }

    fn allocate(&mut self, config: &Config, limits: Limits, rope: &RopeTable, kv: &KvLayout) -> Result<(), Error> {
        let gpu = &mut self.gpu;
        let state = ModelState::allocate(gpu, config, limits, rope, kv)?;
        let variants = self.multiplied.variants(&gpu.tuning, config, limits, rope.layout);
        gpu.prepare(&variants)?;
        gpu.pipelines.save();
        self.model = Some(state);
        Ok(())
    }

    fn begin(&mut self, batch: &[BatchToken], kv: &KvPages) -> Result<(), Error> {
        // First, so that nothing of a pass that was given up still reads the inputs.
        self.gpu.begin()?;
        if batch.chunk_by(|a, b| a.seq == b.seq).all(|tokens| tokens.len() == 1) {
            self.gpu.commands.keep_whole();
        }
        let m = self.model.as_mut().expect("allocate comes before the first pass");
        m.in_bytes_of = None;
        m.write_inputs(batch, kv, &self.gpu.tuning);
        Ok(())
    }

    fn begin_layer(&mut self, il: usize) -> Result<(), Error> {
        self.model.as_mut().expect("allocate comes before the first pass").layer = il;
        Ok(())
    }

    fn embed(&mut self, table: &Weight) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        assert!(table.rows >= m.config.n_vocab, "{} rows of {}", table.rows, table.name);
        Ok(embed::record(gpu, table, &m.inputs.tokens, m.rows(Act::X))?)
    }

    fn rms_norm(&mut self, x: Act, weight: &Weight, dst: Act) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        if m.rows(x).n_rows == 0 {
            return Ok(());
        }
        let (rows, eps) = (m.rows(dst), m.config.rms_eps);
        assert_eq!(weight.cols, rows.width, "width of {}", weight.name);
        // Each expert gets a few of a batch's tokens only.
        let is_for_few = Method::is_matvec(&gpu.tuning, WeightType::Q8_0, rows.n_rows)
            || m.experts.is_some() && matches!(m.routing(&gpu.tuning).method, Method::Matvec { .. });
        if is_for_few && rows.n_rows >= gpu.tuning.dot_from[0] {
            rms_norm::quantized::record(gpu, m.rows(x), weight, eps, rows, m.bytes(dst))?;
            self.model.as_mut().expect("it was there").in_bytes_of = Some(dst);
            return Ok(());
        }
        rms_norm::record(gpu, m.rows(x), weight, eps, rows)?;
        self.overwrites(dst);
        Ok(())
    }

    fn head_norm(&mut self, x: Act, weight: &Weight) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        assert_eq!(weight.cols, m.config.head_dim, "width of {}", weight.name);
        Ok(rms_norm::record(gpu, m.rows(x), weight, m.config.rms_eps, m.rows(x))?)
    }

    fn linear(&mut self, x: Act, products: &[Linear<'_, Weight>]) -> Result<(), Error> {
        if self.parts().1.rows(x).n_rows == 0 {
            return Ok(());
        }
        let in_bytes = products.iter().map(|p| self.put_in_bytes(x, p.weight.ty)).collect::<Result<Vec<_>, _>>()?;
        let (gpu, m) = self.parts();
        let all = products.iter().zip(in_bytes).map(|(p, in_bytes)| Product {
            quantized: in_bytes.then(|| m.bytes(x)),
            bias: p.bias,
            accumulate: p.accumulate,
            ..Product::new(m.rows(x), p.weight, m.rows(p.out))
        });
        linear::record_all(gpu, &all.collect::<Vec<_>>())?;
        products.iter().for_each(|p| self.overwrites(p.out));
        Ok(())
    }

    fn rope(&mut self, x: Act) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        Ok(rope::record(gpu, m.rows(x), &m.rotation())?)
    }

    fn place_heads(&mut self, q_norm: Option<&Weight>, k_norm: Option<&Weight>) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        let (q, k, v) = (m.rows(Act::Q), m.rows(Act::K), m.rows(Act::V));
        let projections = Projections { q, k, v, q_norm, k_norm, eps: m.config.rms_eps };
        let (shape, cache) = (m.shapes[m.layer], &m.cache[m.layer]);
        Ok(place_heads::record(gpu, &projections, &m.rotation(), &m.places(), shape, cache)?)
    }

    fn gated(&mut self, x: Act, gate: &Weight, up: &Weight) -> Result<(), Error> {
        if gate.ty != up.ty {
            let product = |weight, out| Linear { weight, bias: None, out, accumulate: false };
            self.linear(x, &[product(gate, Act::Gate), product(up, Act::Up)])?;
            return self.swiglu();
        }
        let in_integers = self.put_in_bytes(x, gate.ty)?;
        let (gpu, m) = self.parts();
        let quantized = in_integers.then(|| m.bytes(x));
        let (x, dst, activation) = (m.rows(x), m.rows(Act::Gate), Activation::Swiglu);
        gated::record(gpu, &Gated { x, quantized, gate, up, biases: None, activation, dst, routing: None })?;
        self.overwrites(Act::Gate);
        Ok(())
    }

    fn kv_store(&mut self) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        let (shape, cache) = (m.shapes[m.layer], &m.cache[m.layer]);
        Ok(kv_store::record(gpu, m.rows(Act::K), m.rows(Act::V), &m.places(), shape, cache)?)
    }

    fn attention(&mut self, sinks: Option<&Weight>) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        let (q, dst) = (m.rows(Act::Q), m.rows(Act::Attn));
        let (window, of) = (m.config.layers[m.layer].window, m.attention_work());
        let view = attention::View { window, sinks, work: &of.work, tiles: &of.tiles, partials: &m.partials };
        attention::record(gpu, q, &m.places(), m.shapes[m.layer], &m.cache[m.layer], dst, &view)?;
        self.overwrites(Act::Attn);
        Ok(())
    }

    fn swiglu(&mut self) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        swiglu::record(gpu, m.rows(Act::Gate), m.rows(Act::Up), Activation::Swiglu)?;
        self.overwrites(Act::Gate);
        Ok(())
    }

    fn scale_by_sigmoid(&mut self, x: Act, gate: Act) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        scale_by_sigmoid::record(gpu, m.rows(x), m.rows(gate))?;
        self.overwrites(x);
        Ok(())
    }

    fn route(&mut self) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        let routing = m.routing(&gpu.tuning);
        let moe = &m.experts.as_ref().expect("a mixture of experts").config;
        Ok(route::record(gpu, m.rows(Act::Router), moe, &routing)?)
    }

    fn experts(&mut self, x: Act, experts: &ExpertWeights<Weight>) -> Result<(), Error> {
        // The norm has left `x` in bytes if products run in integers.
        let (gpu, m) = self.parts();
        let routing = &m.routing(&gpu.tuning);
        let e = m.experts.as_ref().expect("a mixture of experts");
        let (hidden, up) = (m.pairs(&e.hidden, e.config.n_ff_exp), m.pairs(&e.output, e.config.n_ff_exp));
        let activation = e.config.activation;
        let quantized = (m.in_bytes_of == Some(x)).then(|| m.bytes(x));
        let [gate_bias, up_bias] = [&experts.gate_bias, &experts.up_bias].map(Option::as_ref);
        let (n_tokens, x) = (routing.n_tokens, m.rows(x));
        if experts.gate.ty == experts.up.ty {
            let biases = gate_bias.zip(up_bias).map(|(gate, up)| [gate, up]);
            let (gate, up) = (&experts.gate, &experts.up);
            let routing = Some(routing);
            gated::record(gpu, &Gated { x, quantized, gate, up, biases, activation, dst: hidden, routing })?;
        } else {
            let both = [(&experts.gate, gate_bias, hidden), (&experts.up, up_bias, up)];
            linear::record_all(
                gpu,
                &both.map(|(weight, bias, dst)| Product {
                    quantized,
                    bias,
                    routing: Some(routing),
                    ..Product::new(x, weight, dst)
                }),
            )?;
            swiglu::record(gpu, hidden, up, activation)?;
        }
        let in_integers = n_tokens >= gpu.tuning.dot_from[1] && routing.method.can_dot(experts.down.ty);
        let (n_rows, width) = (hidden.n_rows, hidden.width);
        let quantized = in_integers.then_some(QuantizedRows { region: &e.hidden_in_bytes, n_rows, width });
        if let Some(quantized) = quantized {
            quantize::record(gpu, hidden, quantized)?;
        }
        let (bias, routing) = (experts.down_bias.as_ref(), Some(routing));
        let output = if n_tokens == 1 { m.rows(Act::X) } else { m.pairs(&e.output, m.config.n_embd) };
        let down = Product::new(hidden, &experts.down, output);
        let down = Product { quantized, bias, routing, weighted: true, ..down };
        if n_tokens == 1 {
            return Ok(linear::record(gpu, &Product { accumulate: true, ..down })?);
        }
        linear::record(gpu, &down)?;
        Ok(moe_sum::record(gpu, output, m.rows(Act::X))?)
    }

    fn gather_outputs(&mut self) -> Result<(), Error> {
        let (gpu, m) = self.parts();
        if m.n_outputs == 0 {
            return Ok(());
        }
        gather::record(gpu, m.rows(Act::X), &m.inputs.output_rows, m.rows(Act::Out))?;
        self.overwrites(Act::Out);
        Ok(())
    }

    fn finish(&mut self) -> Result<&[f32], Error> {
        let m = self.model.as_ref().expect("allocate comes before the first pass");
        let n = m.n_outputs * m.config.n_vocab;
        let logits = &m.acts[Act::Logits as usize];
        if n > 0 && m.readback.address != logits.address {
            let bytes = (n * 4) as u64;
            self.gpu.copy(&logits.slice(0, bytes), &m.readback.slice(0, bytes));
        }
        self.gpu.submit_and_wait()?;
        Ok(&bytemuck::cast_slice(m.readback.read())[..n])
    }

    fn kv_copy_pages(&mut self, copies: &[PageCopy]) -> Result<(), Error> {
        let m = self.model.as_ref().expect("allocate comes before the first copy");
        assert!(!self.gpu.commands.is_recording(), "pages are copied between passes");
        if copies.is_empty() {
            return Ok(());
        }
        self.gpu.begin()?;
        for copy in copies {
            for il in (0..m.cache.len()).filter(|&il| m.kv.layer_kind[il] == copy.kind) {
                let types = m.kv.options;
                for (ty, region) in [(types.k, m.cache[il].k), (types.v, m.cache[il].v)] {
                    let page_bytes = m.shapes[il].page_bytes(ty);
                    let page = |page: u32| region.slice(u64::from(page) * page_bytes, page_bytes);
                    self.gpu.copy(&page(copy.from), &page(copy.to));
                }
            }
        }
        Ok(self.gpu.submit_and_wait()?)
    }
}
