#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Four chains of matrix products per subgroup, n rounds of them: how fast the device's matrix units compute at best, in
// f16 with f32 sums. Bound by their flops: 2 · 4 · n · MAT_M · MAT_N · MAT_K per subgroup.
// CPU twin: each element is 6 + 4 · n · MAT_K · a · b, exact where these are whole.
// Specialization constants: 0 WG_SIZE, 1 MAT_M (a multiple of 4), 2 MAT_N, 3 MAT_K, 4 SUBGROUP. Subgroups of exactly
// SUBGROUP; cooperative matrices, float16.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;
layout(constant_id = 1) const uint MAT_M = 16;
layout(constant_id = 2) const uint MAT_N = 16;
layout(constant_id = 3) const uint MAT_K = 16;
layout(constant_id = 4) const uint SUBGROUP = 32;

layout(push_constant) uniform Push {
    WriteF32x4 dst;  // MAT_N columns of MAT_M per subgroup
    float a;
    float b;
    uint n;
} push;

void main() {
    coopmat<float16_t, gl_ScopeSubgroup, MAT_M, MAT_K, gl_MatrixUseA> a =
        coopmat<float16_t, gl_ScopeSubgroup, MAT_M, MAT_K, gl_MatrixUseA>(float16_t(push.a));
    coopmat<float16_t, gl_ScopeSubgroup, MAT_K, MAT_N, gl_MatrixUseB> b =
        coopmat<float16_t, gl_ScopeSubgroup, MAT_K, MAT_N, gl_MatrixUseB>(float16_t(push.b));
    coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator> x[4];
    [[unroll]] for (uint j = 0; j < 4; j++)
        x[j] = coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator>(float(j));
    for (uint k = 0; k < push.n; k++)
        [[unroll]] for (uint j = 0; j < 4; j++) x[j] = coopMatMulAdd(a, b, x[j]);
    uint wave = gl_WorkGroupID.x * (WG_SIZE / SUBGROUP) + gl_SubgroupID;
    coopMatStore(x[0] + x[1] + x[2] + x[3], push.dst.v, wave * (MAT_M * MAT_N / 4), MAT_M / 4,
                 gl_CooperativeMatrixLayoutColumnMajor);
}
