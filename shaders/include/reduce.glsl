// Sums and maxima over a workgroup of any size and any subgroup size of at least 4: first inside the subgroups, then
// across them through shared memory. All invocations must call, and all get the result.
// Needs WG_SIZE (specialization constant) and subgroup arithmetic.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

shared float reduce_partials[WG_SIZE / 4];

float workgroup_add(float value) {
    value = subgroupAdd(value);
    if (gl_NumSubgroups == 1) return value;
    barrier(); // the partials of an earlier call have been read
    if (subgroupElect()) reduce_partials[gl_SubgroupID] = value;
    barrier();
    float total = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) total += reduce_partials[i];
    return total;
}

float workgroup_max(float value) {
    value = subgroupMax(value);
    if (gl_NumSubgroups == 1) return value;
    barrier(); // the partials of an earlier call have been read
    if (subgroupElect()) reduce_partials[gl_SubgroupID] = value;
    barrier();
    float total = reduce_partials[0];
    for (uint i = 1; i < gl_NumSubgroups; i++) total = max(total, reduce_partials[i]);
    return total;
}
