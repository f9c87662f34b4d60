//! The records of `packed` in AVX2: where their codes and scales lie. The arithmetic is `panel_avx2`'s.

use super::activation::QuantizedRows;
use super::avx2::{prefetch_behind, store256};
use super::group::MXFP4_CODES;
use super::packed::{PANEL_ROWS, Packed, PackedType};
use super::panel::{SmallPanel, SuperPanel};
use super::panel_avx2::{SmallSource, SuperSource, Unpacked, UnpackedSmall, small_tiles, super_tiles};
use super::small::eight_e8m0;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// From this many tokens on a record is unpacked to bytes once for all of them.
const UNPACK_TOKENS: usize = 16;

/// Adds the products of the panels from `first` on with `n` tokens from `t0` on to `sums`, `[panel][token][8]`.
pub(super) fn multiply(packed: &Packed, first: usize, x: &QuantizedRows, t0: usize, n: usize, sums: &mut [f32]) {
    // SAFETY: weights are only repacked where `SimdLevel::detect` has seen AVX2, FMA and F16C.
    unsafe {
        match packed.ty {
            PackedType::Q4_0 => multiply_small::<Q40>(packed, first, x, t0, n, sums),
            PackedType::Q5_0 => multiply_small::<Q50>(packed, first, x, t0, n, sums),
            PackedType::Q8_0 => multiply_small::<Q80>(packed, first, x, t0, n, sums),
            PackedType::Mxfp4 => multiply_small::<Mxfp4>(packed, first, x, t0, n, sums),
            PackedType::Q4K => multiply_super::<Q4K>(packed, first, x, t0, n, sums),
            PackedType::Q5K => multiply_super::<Q5K>(packed, first, x, t0, n, sums),
            PackedType::Q6K => multiply_super::<Q6K>(packed, first, x, t0, n, sums),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_super<L: SuperLayout>(
    packed: &Packed,
    first: usize,
    x: &QuantizedRows,
    t0: usize,
    n: usize,
    sums: &mut [f32],
) {
    // SAFETY: this function is compiled for the instructions.
    unsafe {
        if n < UNPACK_TOKENS {
            for (p, sums) in sums.chunks_exact_mut(n * PANEL_ROWS).enumerate() {
                for (g, record) in packed.panel(first + p).chunks_exact(L::BYTES).enumerate() {
                    prefetch_behind(record, L::BYTES);
                    super_tiles(&Super::<L>::new(record), x, g, t0, sums);
                }
            }
            return;
        }
        let mut panel = SuperPanel::<PANEL_ROWS>::ZERO;
        for g in 0..packed.groups {
            for (p, sums) in sums.chunks_exact_mut(n * PANEL_ROWS).enumerate() {
                unpack_super(&Super::<L>::new(&packed.panel(first + p)[g * L::BYTES..(g + 1) * L::BYTES]), &mut panel);
                L::unpacked_tiles(&panel, x, g, t0, sums);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_small<L: SmallLayout>(
    packed: &Packed,
    first: usize,
    x: &QuantizedRows,
    t0: usize,
    n: usize,
    sums: &mut [f32],
) {
    // SAFETY: this function is compiled for the instructions.
    unsafe {
        if n < UNPACK_TOKENS {
            for (p, sums) in sums.chunks_exact_mut(n * PANEL_ROWS).enumerate() {
                for (g, records) in packed.panel(first + p).chunks(8 * L::BYTES).enumerate() {
                    prefetch_behind(records, 8 * L::BYTES);
                    small_tiles(&Small::<L>::new(records), x, g, t0, sums);
                }
            }
            return;
        }
        let mut panel = SmallPanel::<PANEL_ROWS>::ZERO;
        for g in 0..packed.groups {
            for (p, sums) in sums.chunks_exact_mut(n * PANEL_ROWS).enumerate() {
                let records = &packed.panel(first + p)[g * 8 * L::BYTES..];
                unpack_small(&Small::<L>::new(&records[..records.len().min(8 * L::BYTES)]), &mut panel);
                L::unpacked_tiles(&panel, x, g, t0, sums);
            }
        }
    }
}

/// # Safety
/// Only inside code compiled for AVX2 and F16C.
#[inline(always)]
unsafe fn unpack_super<S: SuperSource>(w: &S, panel: &mut SuperPanel<PANEL_ROWS>) {
    // SAFETY: by the caller's promise.
    unsafe {
        for b in 0..8 {
            for i in 0..4 {
                let (first, second) = w.codes(b, i);
                store256(panel.codes[8 * b + 2 * i].as_flattened_mut(), 0, first);
                store256(panel.codes[8 * b + 2 * i + 1].as_flattened_mut(), 0, second);
            }
            for j in [2 * b, 2 * b + 1] {
                store256(bytemuck::cast_slice_mut(&mut panel.scale[j]), 0, w.scale(j));
            }
            store256(bytemuck::cast_slice_mut(&mut panel.min[b]), 0, w.min(b));
        }
        let (d, dmin) = w.d();
        _mm256_storeu_ps(panel.d.as_mut_ptr(), d);
        _mm256_storeu_ps(panel.dmin.as_mut_ptr(), dmin);
    }
}

/// # Safety
/// Only inside code compiled for AVX2 and F16C.
#[inline(always)]
unsafe fn unpack_small<S: SmallSource>(w: &S, panel: &mut SmallPanel<PANEL_ROWS>) {
    // SAFETY: by the caller's promise.
    unsafe {
        let offset = _mm256_set1_epi8(if S::SIGNED { -128 } else { 0 });
        for b in 0..w.n_blocks() {
            for i in 0..4 {
                let (first, second) = w.codes(b, i);
                store256(panel.codes[8 * b + 2 * i].as_flattened_mut(), 0, _mm256_xor_si256(first, offset));
                store256(panel.codes[8 * b + 2 * i + 1].as_flattened_mut(), 0, _mm256_xor_si256(second, offset));
            }
            let (d, m) = w.d_m(b);
            _mm256_storeu_ps(panel.d[b].as_mut_ptr(), d);
            _mm256_storeu_ps(panel.m[b].as_mut_ptr(), m);
        }
        for b in w.n_blocks()..8 {
            panel.codes[8 * b..8 * b + 8].fill([[0; 4]; PANEL_ROWS]);
            (panel.d[b], panel.m[b]) = ([0.0; PANEL_ROWS], [0.0; PANEL_ROWS]);
        }
    }
}

/// How a K-quant's record is laid out.
trait SuperLayout {
    /// Bytes of a record.
    const BYTES: usize;
    /// Steps whose products are summed in 16 bits.
    const RUN: usize;
    /// Scales and minima in bytes, `[scale][8 rows]`, as far as that takes work.
    type Scales;
    /// The scales of a record. As everything here, on a record of [`Self::BYTES`].
    ///
    /// # Safety
    /// Only inside code compiled for AVX2 and F16C.
    unsafe fn scales(record: &[u8]) -> Self::Scales;
    /// As [`SuperSource::codes`].
    ///
    /// # Safety
    /// As above.
    unsafe fn codes(record: &[u8], b: usize, i: usize) -> (__m256i, __m256i);
    /// As [`SuperSource::scale`].
    ///
    /// # Safety
    /// As above.
    unsafe fn scale(record: &[u8], scales: &Self::Scales, j: usize) -> __m256i;
    /// As [`SuperSource::min`].
    ///
    /// # Safety
    /// As above.
    unsafe fn min(record: &[u8], scales: &Self::Scales, b: usize) -> __m256i;
    /// As [`SuperSource::d`].
    ///
    /// # Safety
    /// As above.
    unsafe fn d(record: &[u8]) -> (__m256, __m256);
    /// [`super_tiles`] of the unpacked record.
    ///
    /// # Safety
    /// As there.
    unsafe fn unpacked_tiles(panel: &SuperPanel<PANEL_ROWS>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]);
}

/// How the record of a block of 32 columns is laid out.
trait SmallLayout {
    /// Bytes of a record.
    const BYTES: usize;
    /// As [`SmallSource::SIGNED`].
    const SIGNED: bool = false;
    /// Steps `2i` and the next of a record of [`Self::BYTES`].
    ///
    /// # Safety
    /// Only inside code compiled for AVX2 and F16C, as everything here.
    unsafe fn codes(record: &[u8], i: usize) -> (__m256i, __m256i);
    /// As [`SmallSource::d_m`].
    ///
    /// # Safety
    /// As above.
    unsafe fn d_m(record: &[u8]) -> (__m256, __m256);
    /// [`small_tiles`] of the unpacked records of a group.
    ///
    /// # Safety
    /// As there.
    unsafe fn unpacked_tiles(panel: &SmallPanel<PANEL_ROWS>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]);
}

/// A record as a source of codes.
struct Super<'a, L: SuperLayout> {
    record: &'a [u8],
    scales: L::Scales,
}

impl<'a, L: SuperLayout> Super<'a, L> {
    /// # Safety
    /// Only inside code compiled for AVX2 and F16C.
    #[inline(always)]
    unsafe fn new(record: &'a [u8]) -> Self {
        assert!(record.len() == L::BYTES);
        // SAFETY: by the caller's promise.
        Super { record, scales: unsafe { L::scales(record) } }
    }
}

impl<L: SuperLayout> SuperSource for Super<'_, L> {
    const RUN: usize = L::RUN;
    #[inline(always)]
    unsafe fn codes(&self, b: usize, i: usize) -> (__m256i, __m256i) {
        // SAFETY: by the caller's promise; the record's length was checked.
        unsafe { L::codes(self.record, b, i) }
    }
    #[inline(always)]
    unsafe fn scale(&self, j: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { L::scale(self.record, &self.scales, j) }
    }
    #[inline(always)]
    unsafe fn min(&self, b: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { L::min(self.record, &self.scales, b) }
    }
    #[inline(always)]
    unsafe fn d(&self) -> (__m256, __m256) {
        // SAFETY: as above.
        unsafe { L::d(self.record) }
    }
}

/// Up to eight records, one group.
struct Small<'a, L: SmallLayout> {
    records: &'a [u8],
    layout: PhantomData<L>,
}

impl<'a, L: SmallLayout> Small<'a, L> {
    fn new(records: &'a [u8]) -> Self {
        assert!(records.len().is_multiple_of(L::BYTES) && records.len() <= 8 * L::BYTES);
        Small { records, layout: PhantomData }
    }

    #[inline(always)]
    fn record(&self, b: usize) -> &[u8] {
        debug_assert!(b < self.n_blocks());
        // SAFETY: a block below `n_blocks` has a whole record, and nobody asks for others.
        unsafe { self.records.get_unchecked(b * L::BYTES..(b + 1) * L::BYTES) }
    }
}

impl<L: SmallLayout> SmallSource for Small<'_, L> {
    const SIGNED: bool = L::SIGNED;
    #[inline(always)]
    fn n_blocks(&self) -> usize {
        self.records.len() / L::BYTES
    }
    #[inline(always)]
    unsafe fn codes(&self, b: usize, i: usize) -> (__m256i, __m256i) {
        // SAFETY: by the caller's promise.
        unsafe { L::codes(self.record(b), i) }
    }
    #[inline(always)]
    unsafe fn d_m(&self, b: usize) -> (__m256, __m256) {
        // SAFETY: by the caller's promise.
        unsafe { L::d_m(self.record(b)) }
    }
}

/// 32 bytes at `at`.
///
/// # Safety
/// They lie within `bytes`; only inside code compiled for AVX2.
#[inline(always)]
unsafe fn load(bytes: &[u8], at: usize) -> __m256i {
    debug_assert!(at + 32 <= bytes.len());
    // SAFETY: by the caller's promise; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

/// 16 bytes at `at`, in both halves.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn load_twice(bytes: &[u8], at: usize) -> __m256i {
    debug_assert!(at + 16 <= bytes.len());
    // SAFETY: by the caller's promise; the load needs no alignment.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().add(at).cast())) }
}

/// Eight f16 at `at`.
///
/// # Safety
/// As [`load`], and for F16C.
#[inline(always)]
unsafe fn eight_f16(bytes: &[u8], at: usize) -> __m256 {
    debug_assert!(at + 16 <= bytes.len());
    // SAFETY: by the caller's promise; the load needs no alignment.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().add(at).cast())) }
}

/// The low and the high nibbles of 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(both: __m256i) -> (__m256i, __m256i) {
    let low = _mm256_set1_epi8(15);
    (_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16::<4>(both), low))
}

/// Bit `step` of each byte, as 16.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bit(bits: __m256i, step: usize) -> __m256i {
    let at_four = match step {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        3 => _mm256_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm256_srli_epi16::<1>(bits),
        6 => _mm256_srli_epi16::<2>(bits),
        _ => _mm256_srli_epi16::<3>(bits),
    };
    _mm256_and_si256(at_four, _mm256_set1_epi8(16))
}

/// Bits `2·step` and the next of each byte, times 16.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_and_sixth_bit(bits: __m256i, step: usize) -> __m256i {
    let at_four = match step {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<2>(bits),
        2 => bits,
        _ => _mm256_srli_epi16::<2>(bits),
    };
    _mm256_and_si256(at_four, _mm256_set1_epi8(0x30))
}

/// Steps `2i` and the next of nibbles with a fifth bit, which lies in a vector per eight steps.
#[inline]
#[target_feature(enable = "avx2")]
fn five_bits(low: __m256i, bits: __m256i, i: usize) -> (__m256i, __m256i) {
    let (first, second) = nibbles(low);
    (_mm256_or_si256(first, fifth_bit(bits, 2 * i)), _mm256_or_si256(second, fifth_bit(bits, 2 * i + 1)))
}

/// Which of eight bytes, the first ones or the last of sixteen, goes to both halves of each 32-bit number.
static TWICE: [[u8; 32]; 2] = spread(0);
/// The same, to the upper byte of both halves.
static TWICE_UPPER: [[u8; 32]; 2] = spread(1);

const fn spread(byte: usize) -> [[u8; 32]; 2] {
    let mut table = [[0x80; 32]; 2];
    let mut i = byte;
    while i < 32 {
        table[0][i] = (i / 4) as u8;
        table[1][i] = (8 + i / 4) as u8;
        i += 2;
    }
    table
}

/// Byte `8j + r` of `bytes` as two 16-bit numbers in lane `r`.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn twice(bytes: &[u8], j: usize) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_shuffle_epi8(load_twice(bytes, j / 2 * 16), load(&TWICE[j % 2], 0)) }
}

/// The same with signed bytes from `at` on.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn twice_signed(bytes: &[u8], at: usize, j: usize) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe {
        let upper = _mm256_shuffle_epi8(load_twice(bytes, at + j / 2 * 16), load(&TWICE_UPPER[j % 2], 0));
        _mm256_srai_epi16::<8>(upper)
    }
}

/// The 6-bit scales and minima at `at`, see `packed::pack_scales_mins`, as bytes: eight scales of eight rows, then the
/// minima.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn scales_mins(record: &[u8], at: usize) -> [u8; 128] {
    let mut out = [0; 128];
    // SAFETY: by the caller's promise.
    unsafe {
        let (six, two) = (_mm256_set1_epi8(63), _mm256_set1_epi8(3));
        let packed = [load(record, at), load(record, at + 32), load(record, at + 64)];
        for (i, bytes) in packed.into_iter().enumerate() {
            store256(&mut out, 32 * i, _mm256_and_si256(bytes, six));
        }
        let above = packed.map(|bytes| _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), two));
        let last = _mm256_or_si256(above[0], _mm256_slli_epi16::<2>(above[1]));
        store256(&mut out, 96, _mm256_or_si256(last, _mm256_slli_epi16::<4>(above[2])));
    }
    out
}

/// Q4_K and Q5_K differ in their codes alone.
macro_rules! six_bit_scales {
    ($name:ident, $codes_bytes:literal, $run:literal, |$record:ident, $b:ident, $i:ident| $codes:expr) => {
        struct $name;
        impl SuperLayout for $name {
            const BYTES: usize = $codes_bytes + 96 + 32;
            const RUN: usize = $run;
            type Scales = [u8; 128];
            #[inline(always)]
            unsafe fn scales(record: &[u8]) -> [u8; 128] {
                // SAFETY: by the caller's promise.
                unsafe { scales_mins(record, $codes_bytes) }
            }
            #[inline(always)]
            unsafe fn codes($record: &[u8], $b: usize, $i: usize) -> (__m256i, __m256i) {
                // SAFETY: as above.
                unsafe { $codes }
            }
            #[inline(always)]
            unsafe fn scale(_: &[u8], scales: &[u8; 128], j: usize) -> __m256i {
                // SAFETY: as above.
                unsafe { twice(scales, j / 2) }
            }
            #[inline(always)]
            unsafe fn min(_: &[u8], scales: &[u8; 128], b: usize) -> __m256i {
                // SAFETY: as above.
                unsafe { twice(scales, 8 + b) }
            }
            #[inline(always)]
            unsafe fn d(record: &[u8]) -> (__m256, __m256) {
                // SAFETY: as above.
                unsafe { (eight_f16(record, $codes_bytes + 96), eight_f16(record, $codes_bytes + 112)) }
            }
            #[inline(always)]
            unsafe fn unpacked_tiles(
                panel: &SuperPanel<PANEL_ROWS>,
                x: &QuantizedRows,
                g: usize,
                t0: usize,
                sums: &mut [f32],
            ) {
                // SAFETY: as above.
                unsafe { super_tiles(&Unpacked::<$run>(panel), x, g, t0, sums) }
            }
        }
    };
}
// 8 steps of pairs: 8 · 2 · 15 · 127 < 2¹⁵.
six_bit_scales!(Q4K, 1024, 8, |record, b, i| nibbles(load(record, 128 * b + 32 * i)));
// 4 · 2 · 31 · 127 < 2¹⁵.
six_bit_scales!(Q5K, 1280, 4, |record, b, i| five_bits(load(record, 128 * b + 32 * i), load(record, 1024 + 32 * b), i));

struct Q6K;
impl SuperLayout for Q6K {
    const BYTES: usize = 1024 + 512 + 128 + 16;
    // 2 · 2 · 63 · 127 < 2¹⁵.
    const RUN: usize = 2;
    type Scales = ();
    #[inline(always)]
    unsafe fn scales(_: &[u8]) {}
    #[inline(always)]
    unsafe fn codes(record: &[u8], b: usize, i: usize) -> (__m256i, __m256i) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (first, second) = nibbles(load(record, 128 * b + 32 * i));
            let bits = load(record, 1024 + 64 * b + i / 2 * 32);
            let step = 2 * (i % 2);
            (
                _mm256_or_si256(first, fifth_and_sixth_bit(bits, step)),
                _mm256_or_si256(second, fifth_and_sixth_bit(bits, step + 1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale(record: &[u8], _: &(), j: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { twice_signed(record, 1536, j) }
    }
    #[inline(always)]
    unsafe fn min(record: &[u8], _: &(), b: usize) -> __m256i {
        // The scales of both sixteens, each once.
        // SAFETY: as above.
        unsafe { _mm256_blend_epi16::<0xAA>(twice_signed(record, 1536, 2 * b), twice_signed(record, 1536, 2 * b + 1)) }
    }
    #[inline(always)]
    unsafe fn d(record: &[u8]) -> (__m256, __m256) {
        // SAFETY: as above.
        unsafe {
            let d = eight_f16(record, 1664);
            (d, _mm256_mul_ps(d, _mm256_set1_ps(32.0)))
        }
    }
    #[inline(always)]
    unsafe fn unpacked_tiles(panel: &SuperPanel<PANEL_ROWS>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        // SAFETY: as above.
        unsafe { super_tiles(&Unpacked::<2>(panel), x, g, t0, sums) }
    }
}

macro_rules! small_layout {
    ($name:ident, $bytes:literal, signed: $signed:literal, |$record:ident, $i:ident| $codes:expr, $d_m:expr) => {
        struct $name;
        impl SmallLayout for $name {
            const BYTES: usize = $bytes;
            const SIGNED: bool = $signed;
            #[inline(always)]
            unsafe fn codes($record: &[u8], $i: usize) -> (__m256i, __m256i) {
                // SAFETY: by the caller's promise.
                unsafe { $codes }
            }
            #[inline(always)]
            unsafe fn d_m($record: &[u8]) -> (__m256, __m256) {
                // SAFETY: as above.
                unsafe { $d_m }
            }
            #[inline(always)]
            unsafe fn unpacked_tiles(
                panel: &SmallPanel<PANEL_ROWS>,
                x: &QuantizedRows,
                g: usize,
                t0: usize,
                sums: &mut [f32],
            ) {
                // SAFETY: as above.
                unsafe { small_tiles(&UnpackedSmall::<$signed>(panel), x, g, t0, sums) }
            }
        }
    };
}
small_layout!(
    Q40,
    144,
    signed: false,
    |record, i| nibbles(load(record, 32 * i)),
    with_offset(eight_f16(record, 128), -8.0)
);
small_layout!(
    Q50,
    176,
    signed: false,
    |record, i| five_bits(load(record, 32 * i), load(record, 128), i),
    with_offset(eight_f16(record, 160), -16.0)
);
small_layout!(
    Q80,
    272,
    signed: true,
    |record, i| (load(record, 64 * i), load(record, 64 * i + 32)),
    with_offset(eight_f16(record, 256), -128.0)
);
small_layout!(
    Mxfp4,
    136,
    signed: false,
    |record, i| {
        let (first, second) = nibbles(load(record, 32 * i));
        let values = load_twice(&MXFP4_CODES, 0);
        (_mm256_shuffle_epi8(values, first), _mm256_shuffle_epi8(values, second))
    },
    with_offset(eight_e8m0(_mm256_cvtepu8_epi32(_mm_loadl_epi64(record.as_ptr().add(128).cast()))), -12.0)
);

/// `d`, and `d · offset`, which is what codes that are too large by `-offset` call for.
#[inline]
#[target_feature(enable = "avx2")]
fn with_offset(d: __m256, offset: f32) -> (__m256, __m256) {
    (d, _mm256_mul_ps(d, _mm256_set1_ps(offset)))
}
