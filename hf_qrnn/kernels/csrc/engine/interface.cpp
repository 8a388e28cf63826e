// The engine's C interface, which hf_qrnn/engine/native.py calls. No exception leaves it: out of
// memory is a null pointer or -1.
#include "engine.h"

using hf_qrnn::engine::Decoder;
using hf_qrnn::engine::Network;

#define QRNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <typename Call>
int64_t guarded(Call call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // namespace

QRNN_EXPORT int64_t qrnn_num_instruction_sets() {
  return hf_qrnn::engine::num_instruction_sets();
}

// y (rows, outer) of x (rows, inner) and int8 weights (outer, inner), for the tests.
QRNN_EXPORT int64_t qrnn_int8_product(int64_t instruction_set, const float* x, int64_t rows,
                                      int64_t inner, const int8_t* weights, const float* scales,
                                      int64_t outer, float* y) {
  return guarded([&] {
    const auto& kernels = *hf_qrnn::engine::kernels_of(instruction_set);
    hf_qrnn::engine::Matrix matrix;
    hf_qrnn::engine::pack_int8(kernels, weights, scales, inner, outer, matrix);
    kernels.product(x, inner, rows, matrix.panels(), nullptr, y, outer, false);
    return int64_t{0};
  });
}

QRNN_EXPORT void* qrnn_network_new(const int64_t* fields, double score_scale,
                                   const void* const* weights, int64_t instruction_set,
                                   void (*taken)()) {
  try {
    return hf_qrnn::engine::make_network(fields, score_scale, weights, instruction_set, taken)
        .release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

QRNN_EXPORT void qrnn_network_free(void* network) { delete static_cast<Network*>(network); }

QRNN_EXPORT void* qrnn_decoder_new(const void* network, const int64_t* ids, const int64_t* lengths,
                                   int64_t sources, int64_t rows_each, const int32_t* stop) {
  try {
    return new Decoder(*static_cast<const Network*>(network), ids,
                       std::vector<int64_t>(lengths, lengths + sources), rows_each, stop);
  } catch (const std::bad_alloc&) {
    return nullptr;
  } catch (const hf_qrnn::engine::Stopped&) {
    return nullptr;
  }
}

QRNN_EXPORT void qrnn_decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

QRNN_EXPORT int64_t qrnn_decoder_step(void* decoder, const int64_t* tokens, float* logits) {
  return guarded([&] {
    static_cast<Decoder*>(decoder)->step(tokens, logits);
    return int64_t{0};
  });
}

QRNN_EXPORT int64_t qrnn_decoder_select(void* decoder, const int64_t* rows, int64_t num_rows,
                                        const int64_t* sources, int64_t num_sources) {
  return guarded([&] {
    static_cast<Decoder*>(decoder)->select(rows, num_rows, sources, num_sources);
    return int64_t{0};
  });
}

// 0 if there are more steps to take, 1 if there are none, 2 if the model computes NaN.
QRNN_EXPORT int64_t qrnn_decoder_greedy(void* decoder, int64_t start, const int64_t* ends,
                                        int64_t num_ends, const int64_t* limits, int64_t steps,
                                        int64_t* ids, int64_t* lengths, double* scores) {
  return guarded([&] {
    return static_cast<int64_t>(static_cast<Decoder*>(decoder)->greedy(
        start, ends, num_ends, limits, steps, ids, lengths, scores));
  });
}
