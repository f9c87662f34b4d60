//! Every block type against an independent reading of its format: random bytes, known blocks of the format's reference
//! implementation, and weights that were quantised and come back.

mod quant_support;
mod support;

use engine::gguf::GgmlType;
use engine::quant::dequantize_row;
use quant_support::{element, encode};
use support::Rng;

/// Decoded weights of one block type as gguf-py 0.19 gives them, for the bytes of [`golden_bytes`].
struct Golden {
    ty: GgmlType,
    /// Σ (i + 1) · w[i], which no two elements can be swapped in unseen.
    weighted_sum: f64,
    /// Weights at 0, 1/7, … 7/7 of the way.
    picked: [f64; 8],
}

const GOLDEN: [Golden; 14] = [
    Golden {
        ty: GgmlType::Q4_0,
        weighted_sum: 80.69677734375,
        picked: [
            0.4228515625,
            0.21142578125,
            0.2642822265625,
            -0.0,
            -0.09423828125,
            -0.09423828125,
            0.376953125,
            -0.1884765625,
        ],
    },
    Golden {
        ty: GgmlType::Q4_1,
        weighted_sum: 650.6124267578125,
        picked: [
            0.8145751953125,
            0.092529296875,
            0.4813232421875,
            0.759033203125,
            0.50103759765625,
            0.203582763671875,
            0.1705322265625,
            0.36883544921875,
        ],
    },
    Golden {
        ty: GgmlType::Q5_0,
        weighted_sum: -64.85894775390625,
        picked: [
            -0.420928955078125,
            -0.06475830078125,
            0.226654052734375,
            0.259033203125,
            0.03863525390625,
            -0.3863525390625,
            0.11590576171875,
            0.30908203125,
        ],
    },
    Golden {
        ty: GgmlType::Q5_1,
        weighted_sum: -1151.1246948242188,
        picked: [
            -0.33990478515625,
            -0.796142578125,
            -0.7259521484375,
            -0.48028564453125,
            -0.047393798828125,
            -0.38494873046875,
            -0.08489990234375,
            -0.572479248046875,
        ],
    },
    Golden {
        ty: GgmlType::Q8_0,
        weighted_sum: -1077.7081604003906,
        picked: [
            -0.59271240234375,
            -3.1915283203125,
            1.641357421875,
            -1.32220458984375,
            -3.0926513671875,
            0.30926513671875,
            1.082427978515625,
            2.525665283203125,
        ],
    },
    Golden {
        ty: GgmlType::Q2_K,
        weighted_sum: 21595.253845214844,
        picked: [
            0.259765625,
            0.259765625,
            1.29241943359375,
            2.028228759765625,
            0.4698486328125,
            0.0,
            -0.15252685546875,
            -0.213623046875,
        ],
    },
    Golden {
        ty: GgmlType::Q3_K,
        weighted_sum: 25371.0322265625,
        picked: [-0.652587890625, 1.0513916015625, 0.0, 0.0, 0.0, 0.7745361328125, -0.0, -0.0],
    },
    Golden {
        ty: GgmlType::Q4_K,
        weighted_sum: -1518642.6159362793,
        picked: [
            -2.03631591796875,
            -5.443328857421875,
            -8.743499755859375,
            -36.2725830078125,
            -6.9588623046875,
            1.46630859375,
            -0.933563232421875,
            -9.172760009765625,
        ],
    },
    Golden {
        ty: GgmlType::Q5_K,
        weighted_sum: 2902805.4556274414,
        picked: [
            35.66339111328125,
            -0.96826171875,
            3.94354248046875,
            13.87554931640625,
            44.419403076171875,
            7.879150390625,
            4.741607666015625,
            75.95318603515625,
        ],
    },
    Golden {
        ty: GgmlType::Q6_K,
        weighted_sum: 288060.979888916,
        picked: [
            -29.80810546875,
            3.33380126953125,
            62.8846435546875,
            14.70794677734375,
            -39.902801513671875,
            17.661895751953125,
            18.708526611328125,
            -16.48443603515625,
        ],
    },
    Golden {
        ty: GgmlType::IQ4_NL,
        weighted_sum: 382.0579833984375,
        picked: [
            -0.4669189453125,
            -1.0272216796875,
            0.60699462890625,
            -0.4669189453125,
            0.034423828125,
            1.30810546875,
            -0.34423828125,
            -2.857177734375,
        ],
    },
    Golden {
        ty: GgmlType::IQ4_XS,
        weighted_sum: 454382.26107788086,
        picked: [
            102.574951171875,
            9.2054443359375,
            0.0,
            -136.7666015625,
            2.47161865234375,
            25.7808837890625,
            -1.1407470703125,
            -47.3790283203125,
        ],
    },
    Golden { ty: GgmlType::MXFP4, weighted_sum: -494.25, picked: [0.0, 4.0, -2.0, -3.0, -3.0, 0.5, -0.5, 0.0] },
    Golden {
        ty: GgmlType::BF16,
        weighted_sum: 42.20220947265625,
        picked: [
            0.057861328125,
            0.06298828125,
            -0.447265625,
            0.01318359375,
            -0.56640625,
            -0.0361328125,
            -0.189453125,
            0.08154296875,
        ],
    },
];

/// Blocks with every bit in use: a linear congruential stream, its scales brought to a sensible size.
fn golden_bytes(ty: GgmlType, n_blocks: usize) -> Vec<u8> {
    let mut state = ty as u64;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(n_blocks * ty.block_bytes())
    .collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            GgmlType::MXFP4 => block[0] = 120 + (block[0] & 15),
            GgmlType::BF16 => block[1] = block[1] & 0x83 | 0x3c,
            _ => scale_offsets(ty).iter().for_each(|at| block[at + 1] = block[at + 1] & 0x83 | 0x28),
        }
    }
    bytes
}

/// Where a block's f16 scales and minima lie.
fn scale_offsets(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::MXFP4 => &[],
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL | GgmlType::IQ4_XS => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
    }
}

fn decode(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    dequantize_row(ty, bytes, &mut out);
    out
}

#[test]
fn known_blocks() {
    for g in &GOLDEN {
        let bytes = golden_bytes(g.ty, (64 / g.ty.block_len()).max(2));
        let w = decode(g.ty, &bytes);
        let picked: [f64; 8] = std::array::from_fn(|i| f64::from(w[i * (w.len() - 1) / 7]));
        for (i, (found, expected)) in picked.iter().zip(&g.picked).enumerate() {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{} {i}: {found}, not {expected}", g.ty);
        }
        let sum: f64 = w.iter().zip(1..).map(|(w, i)| f64::from(*w) * f64::from(i)).sum();
        let size: f64 = w.iter().zip(1..).map(|(w, i)| f64::from(w.abs()) * f64::from(i)).sum();
        assert!((sum - g.weighted_sum).abs() <= 1e-6 * size, "{}: {sum}, not {}", g.ty, g.weighted_sum);
    }
    let quantised = GgmlType::ALL.iter().filter(|ty| !matches!(ty, GgmlType::F32 | GgmlType::F16)).count();
    assert_eq!(GOLDEN.len(), quantised, "a type without a known block");
}

/// The weight that was decoded is the nearest f32, up to the rounding of a product and a difference.
fn assert_same(ty: GgmlType, block: &[u8], e: usize, found: f32) {
    let expected = element(ty, block, e);
    if expected.is_nan() {
        assert!(found.is_nan(), "{ty} element {e}: {found}, not NaN, in {block:02x?}");
        return;
    }
    // A minimum can cancel a product: the error is relative to the larger of them.
    let size = scale_offsets(ty).get(1).map_or(expected.abs(), |at| {
        let m = half::f16::from_le_bytes([block[*at], block[at + 1]]).to_f64().abs();
        expected.abs().max(m * 63.0)
    });
    let error = (f64::from(found) - expected).abs();
    let same_infinity = f64::from(found) == expected || (found.is_infinite() && expected.abs() > f64::from(f32::MAX));
    assert!(same_infinity || error <= 4e-7 * size, "{ty} element {e}: {found}, not {expected}, in {block:02x?}");
}

#[test]
fn random_bytes_decode_as_the_format_says() {
    let mut rng = Rng::new(11);
    for ty in GgmlType::ALL {
        for round in 0..400 {
            let n_blocks = 1 + round % 3;
            let mut bytes: Vec<u8> = (0..n_blocks * ty.block_bytes()).map(|_| (rng.next() >> 33) as u8).collect();
            // Scales of any kind at first (NaN, infinite, subnormal), later sensible ones.
            for block in bytes.chunks_exact_mut(ty.block_bytes()).filter(|_| round >= 100) {
                scale_offsets(ty).iter().for_each(|at| block[at + 1] = block[at + 1] & 0x83 | 0x28);
            }
            let decoded = decode(ty, &bytes);
            for (block, w) in bytes.chunks_exact(ty.block_bytes()).zip(decoded.chunks_exact(ty.block_len())) {
                w.iter().enumerate().for_each(|(e, w)| assert_same(ty, block, e, *w));
            }
        }
    }
}

#[test]
fn every_bit_of_a_block_matters() {
    for ty in GgmlType::ALL {
        let block = golden_bytes(ty, 1);
        let before = decode(ty, &block);
        for bit in 0..8 * block.len() {
            let mut changed = block.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let after = decode(ty, &changed);
            let same = before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(!same || is_idle(ty, &block, bit), "{ty}: bit {bit} of a block changes nothing");
        }
    }
}

/// A bit that another field makes idle.
fn is_idle(ty: GgmlType, block: &[u8], bit: usize) -> bool {
    let weights = decode(ty, block);
    match ty {
        // The sign of a zero.
        GgmlType::MXFP4 => bit >= 8 && bit % 4 == 3 && weights[bit / 8 - 1 + bit % 8 / 4 * 16] == 0.0,
        // A quant or a bit of a scale, where some sub-block's weights are all equal.
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q6_K => weights.chunks(16).any(|w| w.iter().all(|x| x == &w[0])),
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::IQ4_XS => weights.chunks(32).any(|w| w.iter().all(|x| x == &w[0])),
        _ => false,
    }
}

#[test]
fn special_scales_of_mxfp4() {
    // E8M0: 2^(e − 127), from 2^-127 (subnormal) up; 255 is NaN.
    for (e, one) in
        [(0u8, 2f64.powi(-127)), (1, 2f64.powi(-126)), (2, 2f64.powi(-125)), (127, 1.0), (254, 2f64.powi(127))]
    {
        let mut block = [0x22u8; 17];
        block[0] = e;
        assert!(decode(GgmlType::MXFP4, &block).iter().all(|w| f64::from(*w) == one), "e = {e}");
    }
    let mut block = [0x22u8; 17];
    block[0] = 255;
    assert!(decode(GgmlType::MXFP4, &block).iter().all(|w| w.is_nan()));
}

#[test]
fn quantised_weights_come_back_within_half_a_step() {
    let mut rng = Rng::new(5);
    for ty in GgmlType::ALL {
        for round in 0..200 {
            let size = 10f64.powi(round % 5 - 3);
            let mut x: Vec<f32> = (0..ty.block_len()).map(|_| (rng.normal() * size) as f32).collect();
            match round % 7 {
                // All equal, one outlier, one sign only, zeros.
                3 => x.fill(size as f32),
                4 => x[0] = 20.0 * size as f32,
                5 => x.iter_mut().for_each(|x| *x = x.abs()),
                6 => x.fill(0.0),
                _ => {}
            }
            let encoded = encode(ty, &x);
            let back = decode(ty, &encoded.bytes);
            for (e, ((x, back), bound)) in x.iter().zip(&back).zip(&encoded.bounds).enumerate() {
                let slack = 1e-5 * (x.abs() + bound);
                assert!(
                    (x - back).abs() <= bound + slack,
                    "{ty} round {round} element {e}: {x} came back as {back}, bound {bound}"
                );
            }
        }
    }
}
