//! A forward pass that is looked at after every op: what it left in its activation, and with another backend's results
//! put in its place, how far each op alone is from its twin. For finding a wrong kernel on a whole model's shapes and
//! types; slow, since every op is waited for.

use crate::backend::{Act, Backend, BatchToken, Limits, Linear, TensorView};
use crate::error::Error;
use crate::kv::{KvLayout, KvPages, PageCopy};
use crate::model::{Config, ExpertWeights, RopeTable, Weights, forward};

/// What an op left behind.
#[derive(Clone, Debug)]
pub struct Traced {
    /// The op, by the backend's name of it and where it writes, e.g. `linear → Q`.
    pub op: String,
    /// The layer it belongs to; `None` before the first and after the last.
    pub layer: Option<usize>,
    /// Where it writes.
    pub act: Act,
    /// All rows in use, row by row.
    pub values: Vec<f32>,
}

/// How far an op is from its twin.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The op.
    pub op: String,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Root mean square of the differences, as a share of the root mean square of the twin's values.
    pub relative: f64,
    /// The largest difference, in the same unit.
    pub largest: f64,
    /// Kernels that computed it: those since the op before.
    pub kernels: Vec<String>,
}

impl Difference {
    fn new(found: &Traced, twin: &Traced, kernels: Vec<String>) -> Difference {
        assert_eq!((&found.op, found.values.len()), (&twin.op, twin.values.len()), "the same op of the same pass");
        let pairs = || found.values.iter().zip(&twin.values).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let n = twin.values.len().max(1) as f64;
        let rms = (pairs().map(|(_, b)| b * b).sum::<f64>() / n).sqrt().max(f64::MIN_POSITIVE);
        let difference = (pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / n).sqrt();
        // A value that isn't a number is infinitely far away.
        let far = |(a, b): (f64, f64)| if (a - b).is_finite() { (a - b).abs() } else { f64::INFINITY };
        let largest = pairs().map(far).fold(0.0, f64::max);
        let relative = if largest.is_finite() { difference / rms } else { f64::INFINITY };
        Difference { op: found.op.clone(), layer: found.layer, relative, largest: largest / rms, kernels }
    }
}

/// A backend whose activations can be read and overwritten in the middle of a pass.
pub(crate) trait Taps: Backend {
    /// Names of the kernels that were recorded since an activation was last read or overwritten.
    fn kernels(&mut self) -> Vec<String>;

    /// All rows of `act` in use, `[n_rows, width]`.
    fn read_act(&mut self, act: Act) -> Result<Vec<f32>, Error>;

    /// Overwrites them.
    fn write_act(&mut self, act: Act, values: &[f32]) -> Result<(), Error>;
}

/// Runs `batch` and gives what each op left.
pub(crate) fn trace<B: Taps>(
    backend: &mut B,
    weights: &Weights<B::Weight>,
    batch: &[BatchToken],
    kv: &KvPages,
) -> Result<Vec<Traced>, Error> {
    let mut found = Vec::new();
    observe(backend, weights, batch, kv, &mut |inner: &mut B, op, acts, layer| {
        for &act in acts {
            found.push(Traced { op: label(op, &[act]), layer, act, values: inner.read_act(act)? });
        }
        Ok(())
    })?;
    Ok(found)
}

/// The same, with what `twin` has put in place of each op's result, so that the next one starts from the same.
pub(crate) fn compare<B: Taps>(
    backend: &mut B,
    weights: &Weights<B::Weight>,
    batch: &[BatchToken],
    kv: &KvPages,
    twin: &[Traced],
) -> Result<Vec<Difference>, Error> {
    let mut differences: Vec<Difference> = Vec::new();
    observe(backend, weights, batch, kv, &mut |inner: &mut B, op, acts, layer| {
        let kernels = if acts.is_empty() { Vec::new() } else { inner.kernels() };
        for &act in acts {
            let twin = &twin[differences.len()];
            let found = Traced { op: label(op, &[act]), layer, act, values: inner.read_act(act)? };
            inner.write_act(act, &twin.values)?;
            differences.push(Difference::new(&found, twin, kernels.clone()));
        }
        Ok(())
    })?;
    assert_eq!(differences.len(), twin.len(), "ops of the same pass");
    Ok(differences)
}

/// Name of an op that writes `acts`, e.g. `linear → Q+K+V`.
pub fn label(op: &str, acts: &[Act]) -> String {
    let acts: Vec<String> = acts.iter().map(|act| format!("{act:?}")).collect();
    if acts.is_empty() { op.to_owned() } else { format!("{op} → {}", acts.join("+")) }
}

/// Told of each op after it: the backend, the op, what it wrote, and its layer.
type Observer<'o, B> = dyn FnMut(&mut B, &str, &[Act], Option<usize>) -> Result<(), Error> + Send + 'o;

/// Runs `batch` and tells of each op.
pub(crate) fn observe<B: Backend>(
    backend: &mut B,
    weights: &Weights<B::Weight>,
    batch: &[BatchToken],
    kv: &KvPages,
    observer: &mut Observer<'_, B>,
) -> Result<(), Error> {
    let mut observed = Observed { inner: backend, observer, layer: None };
    forward(&mut observed, weights, batch, kv)?;
    Ok(())
}

struct Observed<'o, 'f, B> {
    inner: &'o mut B,
    observer: &'o mut Observer<'f, B>,
    layer: Option<usize>,
}

impl<B: Backend> Observed<'_, '_, B> {
    fn tell(&mut self, op: &str, acts: &[Act]) -> Result<(), Error> {
        (self.observer)(self.inner, op, acts, self.layer)
    }
}

impl<B: Backend> Backend for Observed<'_, '_, B> {
    type Weight = B::Weight;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn upload(&mut self, tensor: TensorView<'static>) -> Result<B::Weight, Error> {
        self.inner.upload(tensor)
    }

    fn allocate(&mut self, config: &Config, limits: Limits, rope: &RopeTable, kv: &KvLayout) -> Result<(), Error> {
        self.inner.allocate(config, limits, rope, kv)
    }

    fn begin(&mut self, batch: &[BatchToken], kv: &KvPages) -> Result<(), Error> {
        self.inner.begin(batch, kv)
    }

    fn begin_layer(&mut self, il: usize) -> Result<(), Error> {
        self.layer = Some(il);
        self.inner.begin_layer(il)
    }

    fn embed(&mut self, table: &B::Weight) -> Result<(), Error> {
        self.inner.embed(table)?;
        self.tell("embed", &[Act::X])
    }

    fn rms_norm(&mut self, x: Act, weight: &B::Weight, dst: Act) -> Result<(), Error> {
        self.inner.rms_norm(x, weight, dst)?;
        self.tell("rms_norm", &[dst])
    }

    fn head_norm(&mut self, x: Act, weight: &B::Weight) -> Result<(), Error> {
        self.inner.head_norm(x, weight)?;
        self.tell("head_norm", &[x])
    }

    fn linear(&mut self, x: Act, products: &[Linear<'_, B::Weight>]) -> Result<(), Error> {
        self.inner.linear(x, products)?;
        let acts: Vec<Act> = products.iter().map(|p| p.out).collect();
        self.tell("linear", &acts)
    }

    fn rope(&mut self, x: Act) -> Result<(), Error> {
        self.inner.rope(x)?;
        self.tell("rope", &[x])
    }

    fn kv_store(&mut self) -> Result<(), Error> {
        self.inner.kv_store()?;
        self.tell("kv_store", &[])
    }

    fn place_heads(&mut self, q_norm: Option<&B::Weight>, k_norm: Option<&B::Weight>) -> Result<(), Error> {
        self.inner.place_heads(q_norm, k_norm)?;
        // What it leaves in `K` is up to the backend; what it stored, attention shows.
        self.tell("place_heads", &[Act::Q])
    }

    fn attention(&mut self, sinks: Option<&B::Weight>) -> Result<(), Error> {
        self.inner.attention(sinks)?;
        self.tell("attention", &[Act::Attn])
    }

    fn swiglu(&mut self) -> Result<(), Error> {
        self.inner.swiglu()?;
        self.tell("swiglu", &[Act::Gate])
    }

    fn gated(&mut self, x: Act, gate: &B::Weight, up: &B::Weight) -> Result<(), Error> {
        self.inner.gated(x, gate, up)?;
        self.tell("gated", &[Act::Gate])
    }

    fn scale_by_sigmoid(&mut self, x: Act, gate: Act) -> Result<(), Error> {
        self.inner.scale_by_sigmoid(x, gate)?;
        self.tell("scale_by_sigmoid", &[x])
    }

    fn route(&mut self) -> Result<(), Error> {
        // The choice stays on the device; what it does to the experts' outputs is seen after them.
        self.inner.route()?;
        self.tell("route", &[])
    }

    fn experts(&mut self, x: Act, experts: &ExpertWeights<B::Weight>) -> Result<(), Error> {
        self.inner.experts(x, experts)?;
        self.tell("experts", &[Act::X])
    }

    fn gather_outputs(&mut self) -> Result<(), Error> {
        self.inner.gather_outputs()?;
        self.layer = None;
        self.tell("gather_outputs", &[Act::Out])
    }

    fn finish(&mut self) -> Result<&[f32], Error> {
        self.inner.finish()
    }

    fn kv_copy_pages(&mut self, copies: &[PageCopy]) -> Result<(), Error> {
        self.inner.kv_copy_pages(copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shares_of_the_twin() {
        let traced = |values: &[f32]| Traced { op: "a".into(), layer: None, act: Act::X, values: values.to_vec() };
        let twin = traced(&[3.0, 4.0, 0.0, 0.0]);
        let same = Difference::new(&twin, &twin, Vec::new());
        assert_eq!((same.relative, same.largest), (0.0, 0.0));
        let off = Difference::new(&traced(&[3.0, 4.0, 0.0, 1.0]), &twin, Vec::new());
        assert!((off.relative - 0.2).abs() < 1e-12 && (off.largest - 0.4).abs() < 1e-12, "{off:?}");
        let broken = Difference::new(&traced(&[f32::NAN, 4.0, 0.0, 0.0]), &twin, Vec::new());
        assert_eq!((broken.relative, broken.largest), (f64::INFINITY, f64::INFINITY));
    }
}
