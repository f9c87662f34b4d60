//! Rotary position embedding (arXiv 2104.09864): the frequencies of a model, with linear or YaRN scaling and
//! per-dimension factors (`rope_freqs`), computed once and shared by both backends.

use super::config::{Config, RopeLayout, RopeScaling};

/// YaRN's β of the fast and slow ends of the ramp (arXiv 2309.00071, section 3.2; ggml's defaults).
const YARN_BETA_FAST: f32 = 32.0;
const YARN_BETA_SLOW: f32 = 1.0;

/// What it takes to rotate a head at any position: angle of pair `i` at position `p` is `p · inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `[n_rot / 2]` radians per position.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (YaRN's attention temperature; 1 otherwise).
    pub magnitude: f32,
    /// Which elements form a pair.
    pub layout: RopeLayout,
}

impl RopeTable {
    /// The table of `config`; `factors` is the file's `rope_freqs.weight`, `[n_rot / 2]`, which divides the
    /// frequencies (Llama 3.1's long-context scaling is stored so).
    pub fn new(config: &Config, factors: Option<&[f32]>) -> Self {
        let half = config.n_rot / 2;
        let base: Vec<f64> =
            (0..half).map(|i| f64::from(config.rope_base).powf(-2.0 * i as f64 / config.n_rot as f64)).collect();
        let (scaled, magnitude): (Vec<f64>, f64) = match config.rope_scaling {
            RopeScaling::None => (base, 1.0),
            RopeScaling::Linear { factor } => (base.iter().map(|f| f / f64::from(factor)).collect(), 1.0),
            RopeScaling::Yarn { factor, original_context } => {
                let ramp = yarn_ramp(config.n_rot, config.rope_base, original_context);
                let factor = f64::from(factor);
                let mixed = base.iter().zip(&ramp).map(|(f, &keep)| f / factor * (1.0 - keep) + f * keep).collect();
                (mixed, 1.0 + 0.1 * factor.ln())
            }
        };
        let inv_freq =
            scaled.iter().enumerate().map(|(i, f)| (f / factors.map_or(1.0, |r| f64::from(r[i]))) as f32).collect();
        RopeTable { inv_freq, magnitude: magnitude as f32, layout: config.arch.rope_layout() }
    }
}

/// `[n_rot / 2]` in 0..=1: how much of the trained frequency pair `i` keeps. ggml rounds the ramp's bounds outwards;
/// files are made for that.
fn yarn_ramp(n_rot: usize, base: f32, original_context: u32) -> Vec<f64> {
    let pair_at = |rotations: f32| {
        let wavelength = f64::from(original_context) / (f64::from(rotations) * std::f64::consts::TAU);
        n_rot as f64 * wavelength.ln() / (2.0 * f64::from(base).ln())
    };
    let low = pair_at(YARN_BETA_FAST).floor().max(0.0);
    let high = pair_at(YARN_BETA_SLOW).ceil().min(n_rot as f64 - 1.0);
    (0..n_rot / 2).map(|i| 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)).collect()
}
