// The engine: a translation model's encoder and decoder in C++, without torch and without Python.
//
// Shapes: B sources, M rows of each, R = B * M rows, N source steps in all, E input channels,
// H units, K filter width, G gates, A attention heads, V vocabulary. Gate order is always z, f, o, i.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "functions.h"

namespace hf_qrnn {
namespace engine {

// Numbers on whole cache lines, zero at first.
class Numbers {
 public:
  Numbers() = default;
  explicit Numbers(int64_t size);
  float* data() { return memory_.get(); }
  const float* data() const { return memory_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

// A matrix (inner, outer) in panels.
struct Matrix {
  int64_t inner = 0, outer = 0;
  Numbers numbers;
  bool halves = false;  // two bfloat16 in the place of a float32
  // Of int8 weights, of which four are in the place of a float32; see `Panels`.
  Numbers scales;
  std::vector<int32_t> shifts;
  Panels panels() const {
    return {inner, outer, numbers.data(), halves, scales.data(), shifts.data()};
  }
};

struct FeedForward {
  Numbers norm;
  Matrix gate, in, out;
};

enum class Attention { none, output, block };

struct Layer {
  int64_t input_size, kernel_size;
  bool adds_input, keeps_input;
  Attention attends;
  std::vector<bool> reverses;  // of each direction
  std::vector<Matrix> convolutions;
  std::vector<Numbers> biases;
  Numbers norm;  // empty without one
  bool has_feed_forward = false;
  FeedForward feed_forward;
  Matrix encoding;
  // Attention::output.
  Matrix context, cell;
  // Attention::block.
  Numbers attention_norm;
  Matrix query, key_value, out;
};

struct Network {
  const Kernels* kernels;
  int pooling;
  int64_t num_gates, hidden, embedding_size, vocab, heads, inner;
  bool causal;
  float score_scale;
  Numbers embedding;
  std::vector<Layer> encoder, decoder;
  Numbers encoder_norm, decoder_norm;  // empty without
  bool projects = false;
  Matrix projection, output;
  Numbers output_bias;
};

// Make a network of its description: numbers and pointers to weights, in the order of
// hf_qrnn/engine/native.py. `instruction_set` counts from 0. `taken` is called after each weight
// that has been taken.
std::unique_ptr<Network> make_network(const int64_t* fields, double score_scale,
                                      const void* const* weights, int64_t instruction_set,
                                      void (*taken)());

// The functions of an instruction set.
const Kernels* kernels_of(int64_t instruction_set);

// Pack `source` (outer, inner), rows `stride` apart, or with `transposed` (inner, outer). With
// `halves` as bfloat16, rounded to the nearest.
void pack(const Kernels& kernels, const float* source, int64_t stride, bool transposed,
          int64_t inner, int64_t outer, bool halves, Matrix& matrix);

// Pack int8 weights (outer, inner) with the scales of their rows (outer).
void pack_int8(const Kernels& kernels, const int8_t* source, const float* scales, int64_t inner,
               int64_t outer, Matrix& matrix);

// The encoding of B sources: states (N, H), one source behind the other, and h~ (L, B, H).
struct Encoded {
  Numbers states;
  std::vector<Numbers> finals;
};

// Thrown where a flag says that nobody waits for the result any more.
struct Stopped {};

// `stop` is null or such a flag, which another thread may set.
Encoded encode(const Network& network, const int64_t* ids, const std::vector<int64_t>& lengths,
               const int32_t* stop);

// x + feed-forward(x), in place, of `rows` rows of H.
void add_feed_forward(const Network& network, const FeedForward& block, int64_t rows, float* x);

enum class Progress { goes_on, done, not_a_number };

// The decoder over B sources with M rows of each that share its keys and values.
class Decoder {
 public:
  Decoder(const Network& network, const int64_t* ids, std::vector<int64_t> lengths,
          int64_t rows_each, const int32_t* stop);
  int64_t rows() const { return static_cast<int64_t>(lengths_.size()) * rows_each_; }
  // Read a token of each row; logits are (R, V).
  void step(const int64_t* tokens, float* logits);
  // Go on with some rows, and where `sources` is not null with some sources only.
  void select(const int64_t* rows, int64_t num_rows, const int64_t* sources, int64_t num_sources);
  // Take the likeliest tokens of every row that has not ended, `steps` at most: ids (B, `steps`) of
  // this call, lengths and sums of log-probabilities (B) of all calls. One row a source.
  Progress greedy(int64_t start, const int64_t* ends, int64_t num_ends, const int64_t* limits,
                  int64_t steps, int64_t* ids, int64_t* lengths, double* scores);

 private:
  // What a layer keeps of a source: V h~ + bias, and keys and values of each head.
  struct Memory {
    Numbers gate_bias;
    std::vector<Matrix> keys, values;
  };
  struct State {
    Numbers c;       // (R, H)
    Numbers inputs;  // (R, K, E), the last for the step's own
  };
  void remember(const Encoded& encoded);
  void run_layer(size_t index);
  void attend(size_t index, const float* query, int64_t query_stride, float* context,
              int64_t context_stride);

  const Network& network_;
  std::vector<int64_t> lengths_;
  int64_t rows_each_, longest_ = 0;
  std::vector<std::vector<Memory>> memory_;  // of each layer and source
  std::vector<State> states_;
  // Of greedy search: steps so far, and of each row that goes on its source and its last token.
  int64_t taken_ = 0;
  std::vector<int64_t> active_, tokens_;
  // Of a step: a layer's input and output (R, width), and what is between.
  Numbers x_, y_, gates_, o_, context_, query_, scores_;
};

}  // namespace engine
}  // namespace hf_qrnn
