//! Where a product goes: rows of an activation buffer that several threads fill, each its own columns.

use std::marker::PhantomData;

/// `[n_tokens, width]` f32 with what happens to a value on its way in.
pub(super) struct Output<'a> {
    data: *mut f32,
    n_tokens: usize,
    width: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: `put` is the only access; callers give disjoint rows of the weight to different threads, so that no element
// is written by two of them.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Results go to `data`, `[n_tokens, width]`, plus `bias` (`[width]`), added to what is there with `accumulate`.
    pub(super) fn new(data: &'a mut [f32], width: usize, bias: Option<&'a [f32]>, accumulate: bool) -> Self {
        assert!(data.len().is_multiple_of(width) && bias.is_none_or(|b| b.len() == width));
        Output { n_tokens: data.len() / width, data: data.as_mut_ptr(), width, bias, accumulate, owner: PhantomData }
    }

    /// Takes `values` for columns `first..` of token `t`. Different threads must give different columns.
    pub(super) fn put(&self, t: usize, first: usize, values: &[f32]) {
        assert!(t < self.n_tokens && first + values.len() <= self.width);
        for (i, value) in values.iter().enumerate() {
            let value = value + self.bias.map_or(0.0, |b| b[first + i]);
            // SAFETY: in bounds by the assertion above; the borrow in `owner` keeps the buffer alive and unaliased
            // but for other threads' disjoint columns.
            unsafe {
                let at = self.data.add(t * self.width + first + i);
                *at = if self.accumulate { *at + value } else { value };
            }
        }
    }
}
