//! Activations read and overwritten in the middle of a pass, for comparing op by op with the CPU backend.

use super::Vulkan;
use super::memory::{MemoryUse, Region};
use super::state::stride;
use crate::backend::Act;
use crate::error::Error;
use crate::trace::Taps;

impl Vulkan {
    /// A buffer of the size of `act` that the processor can access.
    fn tap_region(&mut self, act: Act) -> Result<Region, Error> {
        let bytes = self.model.as_ref().expect("allocate comes before the first pass").acts[act as usize].bytes;
        if let Some(region) = self.tap.filter(|region| region.bytes >= bytes) {
            return Ok(region.slice(0, bytes));
        }
        let region = self.gpu.allocate(MemoryUse::Readback, bytes, "an activation to be looked at")?;
        self.tap = Some(region);
        Ok(region.slice(0, bytes))
    }

    /// Rows in use and elements of a row: in use, and from one to the next.
    fn tap_shape(&self, act: Act) -> (usize, usize, usize) {
        let m = self.model.as_ref().expect("allocate comes before the first pass");
        let n_rows = if matches!(act, Act::Out | Act::Logits) { m.n_outputs } else { m.n_tokens };
        (n_rows, act.width(&m.config, m.layer), stride(act, &m.config))
    }
}

impl Taps for Vulkan {
    fn kernels(&mut self) -> Vec<String> {
        self.gpu.recorded_kernels()
    }

    fn read_act(&mut self, act: Act) -> Result<Vec<f32>, Error> {
        let tap = self.tap_region(act)?;
        let region = self.parts().1.acts[act as usize];
        self.gpu.copy(&region, &tap);
        self.gpu.submit_and_wait()?;
        let (n_rows, width, stride) = self.tap_shape(act);
        let all: &[f32] = bytemuck::cast_slice(tap.read());
        let values = all.chunks_exact(stride.max(1)).take(n_rows).flat_map(|row| &row[..width]).copied().collect();
        self.gpu.begin()?;
        Ok(values)
    }

    fn write_act(&mut self, act: Act, values: &[f32]) -> Result<(), Error> {
        let mut tap = self.tap_region(act)?;
        let region = self.parts().1.acts[act as usize];
        let (n_rows, width, stride) = self.tap_shape(act);
        assert_eq!(values.len(), n_rows * width, "elements of {act:?}");
        // What is there already, padding included, was read just before.
        let all: &mut [f32] = bytemuck::cast_slice_mut(tap.write());
        for (row, values) in all.chunks_exact_mut(stride.max(1)).zip(values.chunks_exact(width.max(1))) {
            row[..width].copy_from_slice(values);
        }
        self.gpu.copy(&tap, &region);
        self.gpu.submit_and_wait()?;
        Ok(self.gpu.begin()?)
    }
}
