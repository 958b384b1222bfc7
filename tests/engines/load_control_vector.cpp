// A C name for llama.cpp's own reader of control vector files, which its Python binding does not have.

#include <algorithm>

#include "common.h"

// The length of a direction, -1 where llama.cpp refuses the file. `size` becomes the number of floats that it would
// hand to llama_set_adapter_cvec; as many as `room` of them are copied to `data`.
extern "C" int load_control_vector(const char *path, float strength, float *data, size_t room, size_t *size) {
    common_control_vector_load_info info{};
    info.strength = strength;
    info.fname = path;
    const common_control_vector_data loaded = common_control_vector_load({info});
    *size = loaded.data.size();
    std::copy_n(loaded.data.begin(), std::min(room, *size), data);
    return loaded.n_embd;
}
