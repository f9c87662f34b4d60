//! Number theory and arrays, for the Python functions of the sandbox that are too slow when interpreted.
//!
//! Owns the algorithms alone: it knows neither Python nor WebAssembly, so that its tests run on any machine. Numbers
//! are `u128`; what lies beyond, or beyond what is proven, is left to the caller (sympy's own code). Called by
//! `sandbox/guest/src/ntheory.rs` and `arrays.rs`. Surprising fact: long computations ask a [`Poll`] now and then whether to go on,
//! which is how a time limit reaches them.

pub mod array;
pub mod factor;
pub mod group;
pub mod modular;
pub mod prime;
pub mod sieve;

/// Asked about once a millisecond during long computations; an error ends them and is passed on.
pub trait Poll {
    /// The caller's reason to stop.
    type Stop;
    /// Whether to go on.
    fn poll(&mut self) -> Result<(), Self::Stop>;
}

impl<E, F: FnMut() -> Result<(), E>> Poll for F {
    type Stop = E;
    fn poll(&mut self) -> Result<(), E> {
        self()
    }
}

#[cfg(test)]
mod testing {
    use std::convert::Infallible;

    /// A [`super::Poll`] that never stops.
    pub(crate) fn never() -> impl FnMut() -> Result<(), Infallible> {
        || Ok(())
    }

    /// SplitMix64, for repeatable tests.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// A number with a random length up to `n_bits`.
        pub(crate) fn bits(&mut self, n_bits: u32) -> u128 {
            let wide = (u128::from(self.next()) << 64) | u128::from(self.next());
            let shift = 128 - (self.next() % u64::from(n_bits) + 1) as u32;
            wide >> shift
        }
    }
}
