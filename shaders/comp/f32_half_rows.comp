#version 460
#extension GL_GOOGLE_include_directive : require
// Rows of activations as f16, for the matrix units: out[t] = x[t] / scale, rounded to nearest, with the power of two
// scale that brings the largest |x[t, i]| into 2^14 … 2^15: nothing overflows, and what is 2^-28 of the largest or more
// keeps all 11 bits. A row of out is scale (f32), 12 unused bytes, then the elements.
// One workgroup per row. Bound by bytes: 4 read and 2 written per element.
// CPU twin: exact. A row with an infinity or a NaN keeps it.
// Specialization constants: 0 WG_SIZE. Subgroup size ≥ 4, subgroup arithmetic, float16, 16-bit storage.
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;

layout(push_constant) uniform Push {
    ReadF32x4 x;     // [n_rows, stride4 * 4]
    WriteU32x4 dst;  // [n_rows, 1 + stride4 / 2]
    uint stride4;    // even
} push;

#include "reduce.glsl"

void main() {
    uint row = gl_WorkGroupID.x * push.stride4, to = gl_WorkGroupID.x * (1 + push.stride4 / 2);
    float top = 0.0;
    for (uint i = gl_LocalInvocationID.x; i < push.stride4; i += WG_SIZE) {
        vec4 v = abs(push.x.v[row + i]);
        top = max(top, max(max(v.x, v.y), max(v.z, v.w)));
    }
    // Exponents, with their bias of 127; that of a row of (nearly) nothing is taken as the least that can be inverted.
    uint e = max(floatBitsToUint(workgroup_max(top)) >> 23, 15);
    float scale = uintBitsToFloat(e - 14 << 23), inverse = uintBitsToFloat(268 - e << 23);
    for (uint i = gl_LocalInvocationID.x; i < push.stride4 / 2; i += WG_SIZE) {
        vec4 a = push.x.v[row + 2 * i] * inverse, b = push.x.v[row + 2 * i + 1] * inverse;
        push.dst.v[to + 1 + i] = uvec4(packFloat2x16(f16vec2(a.xy)), packFloat2x16(f16vec2(a.zw)),
                                       packFloat2x16(f16vec2(b.xy)), packFloat2x16(f16vec2(b.zw)));
    }
    if (gl_LocalInvocationID.x == 0) push.dst.v[to] = uvec4(floatBitsToUint(scale), 0, 0, 0);
}
