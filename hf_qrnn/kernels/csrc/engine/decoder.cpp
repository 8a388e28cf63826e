// The decoder's step (Eqs. 7 and 8 of arXiv 1611.01576), and greedy search.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine.h"

namespace hf_qrnn {
namespace engine {

namespace {

void copy(float* to, const float* from, int64_t size) {
  std::memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
}

// Rows of `numbers` (any, width) in the order of `rows`.
Numbers take_rows(const Numbers& numbers, int64_t width, const int64_t* rows, int64_t num_rows) {
  Numbers taken(num_rows * width);
  for (int64_t r = 0; r < num_rows; ++r) {
    copy(taken.data() + r * width, numbers.data() + rows[r] * width, width);
  }
  return taken;
}

}  // namespace

Decoder::Decoder(const Network& network, const int64_t* ids, std::vector<int64_t> lengths,
                 int64_t rows_each, const int32_t* stop)
    : network_(network), lengths_(std::move(lengths)), rows_each_(rows_each) {
  remember(encode(network, ids, lengths_, stop));
  const int64_t num_rows = rows(), hidden = network.hidden;
  int64_t widest = std::max(network.embedding_size, hidden);
  for (const Layer& layer : network.decoder) {
    states_.push_back({Numbers(num_rows * hidden),
                       Numbers(num_rows * layer.kernel_size * layer.input_size)});
    widest = std::max(widest, layer.input_size + hidden);
  }
  for (const int64_t length : lengths_) longest_ = std::max(longest_, length);
  x_ = Numbers(num_rows * widest);
  y_ = Numbers(num_rows * widest);
  gates_ = Numbers(num_rows * network.num_gates * hidden);
  o_ = Numbers(num_rows * hidden);
  context_ = Numbers(num_rows * hidden);
  query_ = Numbers(num_rows * hidden);
  scores_ = Numbers(rows_each * longest_);
}

void Decoder::remember(const Encoded& encoded) {
  const Kernels& k = *network_.kernels;
  const int64_t hidden = network_.hidden, size = hidden / network_.heads;
  const int64_t total = encoded.states.size() / hidden;
  // A decoder with fewer layers reads the encoder's last ones.
  const size_t skipped = network_.encoder.size() - network_.decoder.size();
  for (size_t index = 0; index < network_.decoder.size(); ++index) {
    const Layer& layer = network_.decoder[index];
    const float *keys = encoded.states.data(), *values = keys;
    int64_t stride = hidden;
    Numbers both;
    if (layer.attends == Attention::block) {
      stride = 2 * hidden;
      both = Numbers(total * stride);
      k.product(keys, hidden, total, layer.key_value.panels(), nullptr, both.data(), stride, false);
      keys = both.data();
      values = keys + hidden;
    }
    std::vector<Memory> memories(lengths_.size());
    for (size_t b = 0; b < lengths_.size(); ++b) {
      Memory& memory = memories[b];
      memory.gate_bias = Numbers(network_.num_gates * hidden);
      const float* h_tilde = encoded.finals[index + skipped].data() + static_cast<int64_t>(b) * hidden;
      k.product(h_tilde, hidden, 1, layer.encoding.panels(), layer.biases[0].data(),
                memory.gate_bias.data(), network_.num_gates * hidden, false);
      if (layer.attends == Attention::none) continue;
      const int64_t length = lengths_[b];
      for (int64_t a = 0; a < network_.heads; ++a) {
        memory.keys.emplace_back();
        pack(k, keys + a * size, stride, false, size, length, false, memory.keys.back());
        memory.values.emplace_back();
        pack(k, values + a * size, stride, true, length, size, false, memory.values.back());
      }
      keys += length * stride;
      values += length * stride;
    }
    memory_.push_back(std::move(memories));
  }
}

void Decoder::step(const int64_t* tokens, float* logits) {
  const Kernels& k = *network_.kernels;
  const int64_t num_rows = rows(), hidden = network_.hidden, embed = network_.embedding_size;
  for (int64_t r = 0; r < num_rows; ++r) {
    copy(x_.data() + r * embed, network_.embedding.data() + tokens[r] * embed, embed);
  }
  for (size_t index = 0; index < network_.decoder.size(); ++index) run_layer(index);
  if (network_.decoder_norm.size()) {
    for (int64_t r = 0; r < num_rows; ++r) {
      k.normalize(x_.data() + r * hidden, network_.decoder_norm.data(), hidden,
                  y_.data() + r * hidden);
    }
    std::swap(x_, y_);
  }
  if (network_.projects) {
    k.product(x_.data(), hidden, num_rows, network_.projection.panels(), nullptr, y_.data(), embed,
              false);
    std::swap(x_, y_);
  }
  const Panels output = network_.output.panels();
  k.product(x_.data(), output.inner, num_rows, output, network_.output_bias.data(), logits, network_.vocab,
            false);
}

// From x_ (R, E) to x_ (R, H or E + H).
void Decoder::run_layer(size_t index) {
  const Kernels& k = *network_.kernels;
  const Layer& layer = network_.decoder[index];
  State& state = states_[index];
  const int64_t num_rows = rows(), hidden = network_.hidden, width = layer.input_size;
  const int64_t gates = network_.num_gates * hidden, window = layer.kernel_size * width;
  for (int64_t r = 0; r < num_rows; ++r) {
    float* inputs = state.inputs.data() + r * window;
    std::memmove(inputs, inputs + width, static_cast<size_t>(window - width) * sizeof(float));
    float* own = inputs + window - width;
    const float* x = x_.data() + r * width;
    if (layer.norm.size()) {
      k.normalize(x, layer.norm.data(), width, own);
    } else {
      copy(own, x, width);
    }
  }
  k.product(state.inputs.data(), window, num_rows, layer.convolutions[0].panels(), nullptr,
            gates_.data(), gates, false);
  const bool attends_inside = layer.attends == Attention::output;
  for (int64_t r = 0; r < num_rows; ++r) {
    const Memory& memory = memory_[index][static_cast<size_t>(r / rows_each_)];
    k.pool(network_.pooling, gates_.data() + r * gates, memory.gate_bias.data(), hidden,
           state.c.data() + r * hidden, y_.data() + r * hidden,
           attends_inside ? o_.data() + r * hidden : nullptr);
  }
  float* out = y_.data();
  if (attends_inside) {
    attend(index, state.c.data(), hidden, context_.data(), hidden);
    k.product(context_.data(), hidden, num_rows, layer.context.panels(), nullptr, out, hidden,
              false);
    k.product(state.c.data(), hidden, num_rows, layer.cell.panels(), nullptr, out, hidden, true);
    k.multiply(o_.data(), num_rows * hidden, out);
  }
  if (layer.adds_input) {
    for (int64_t i = 0; i < num_rows * hidden; ++i) out[i] += x_.data()[i];
  }
  if (layer.attends == Attention::block) {
    for (int64_t r = 0; r < num_rows; ++r) {
      k.normalize(out + r * hidden, layer.attention_norm.data(), hidden, o_.data() + r * hidden);
    }
    k.product(o_.data(), hidden, num_rows, layer.query.panels(), nullptr, query_.data(), hidden,
              false);
    attend(index, query_.data(), hidden, context_.data(), hidden);
    k.product(context_.data(), hidden, num_rows, layer.out.panels(), nullptr, out, hidden, true);
  }
  if (layer.has_feed_forward) add_feed_forward(network_, layer.feed_forward, num_rows, out);
  if (layer.keeps_input) {
    // From the last row on: x_ has room for the wider rows, and none is read after it is written.
    for (int64_t r = num_rows - 1; r >= 0; --r) {
      float* to = x_.data() + r * (width + hidden);
      std::memmove(to, x_.data() + r * width, static_cast<size_t>(width) * sizeof(float));
      copy(to + width, out + r * hidden, hidden);
    }
  } else {
    std::swap(x_, y_);
  }
}

void Decoder::attend(size_t index, const float* query, int64_t query_stride, float* context,
                     int64_t context_stride) {
  const Kernels& k = *network_.kernels;
  const int64_t size = network_.hidden / network_.heads;
  for (size_t b = 0; b < lengths_.size(); ++b) {
    const Memory& memory = memory_[index][b];
    const int64_t length = lengths_[b], first = static_cast<int64_t>(b) * rows_each_;
    for (int64_t a = 0; a < network_.heads; ++a) {
      const size_t head = static_cast<size_t>(a);
      k.product(query + first * query_stride + a * size, query_stride, rows_each_,
                memory.keys[head].panels(), nullptr, scores_.data(), length, false);
      for (int64_t m = 0; m < rows_each_; ++m) {
        k.softmax(scores_.data() + m * length, length, network_.score_scale);
      }
      k.product(scores_.data(), length, rows_each_, memory.values[head].panels(), nullptr,
                context + first * context_stride + a * size, context_stride, false);
    }
  }
}

void Decoder::select(const int64_t* rows, int64_t num_rows, const int64_t* sources,
                     int64_t num_sources) {
  for (size_t index = 0; index < states_.size(); ++index) {
    const Layer& layer = network_.decoder[index];
    State& state = states_[index];
    state.c = take_rows(state.c, network_.hidden, rows, num_rows);
    state.inputs = take_rows(state.inputs, layer.kernel_size * layer.input_size, rows, num_rows);
  }
  if (!sources) return;
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < num_sources; ++i) {
    lengths.push_back(lengths_[static_cast<size_t>(sources[i])]);
  }
  for (auto& memories : memory_) {
    std::vector<Memory> kept;
    for (int64_t i = 0; i < num_sources; ++i) {
      kept.push_back(std::move(memories[static_cast<size_t>(sources[i])]));
    }
    memories = std::move(kept);
  }
  lengths_ = std::move(lengths);
}

Progress Decoder::greedy(int64_t start, const int64_t* ends, int64_t num_ends,
                         const int64_t* limits, int64_t steps, int64_t* ids, int64_t* lengths,
                         double* scores) {
  const int64_t vocab = network_.vocab;
  std::vector<int64_t>&active = active_, &tokens = tokens_, kept;
  if (taken_ == 0) {
    tokens.assign(lengths_.size(), start);
    for (size_t i = 0; i < lengths_.size(); ++i) active.push_back(static_cast<int64_t>(i));
  }
  Numbers logits(rows() * vocab);
  for (int64_t step = 0; step < steps && !active.empty(); ++step) {
    this->step(tokens.data(), logits.data());
    ++taken_;
    kept.clear();
    for (size_t r = 0; r < active.size(); ++r) {
      const float* row = logits.data() + static_cast<int64_t>(r) * vocab;
      const int64_t source = active[r], token = std::max_element(row, row + vocab) - row;
      const float log_sum = network_.kernels->log_sum(row, vocab);
      if (std::isnan(log_sum)) return Progress::not_a_number;
      scores[source] += static_cast<double>(row[token] - log_sum);
      ids[source * steps + step] = tokens[r] = token;
      lengths[source] = taken_;
      const bool ends_here = std::find(ends, ends + num_ends, token) != ends + num_ends;
      if (!ends_here && taken_ < limits[source]) kept.push_back(static_cast<int64_t>(r));
    }
    const size_t num_kept = kept.size();
    if (num_kept == active.size()) continue;
    for (size_t i = 0; i < num_kept; ++i) {
      active[i] = active[static_cast<size_t>(kept[i])];
      tokens[i] = tokens[static_cast<size_t>(kept[i])];
    }
    active.resize(num_kept);
    tokens.resize(num_kept);
    if (num_kept) {
      select(kept.data(), static_cast<int64_t>(num_kept), kept.data(),
             static_cast<int64_t>(num_kept));
    }
  }
  return active.empty() ? Progress::done : Progress::goes_on;
}

}  // namespace engine
}  // namespace hf_qrnn
