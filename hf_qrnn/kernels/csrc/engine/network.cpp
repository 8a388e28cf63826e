// The weights as products read them, and the encoder.
#include <algorithm>
#include <cstring>

#include "engine.h"

// Every x86-64 has SSE2; a test takes it away to compile what other processors run.
#if defined(__x86_64__) && defined(__SSE2__)
#define QRNN_X86
#endif

namespace hf_qrnn {
namespace engine {

Numbers::Numbers(int64_t size) : size_(size) {
  constexpr size_t kLine = 64;
  const size_t bytes = (static_cast<size_t>(size) * sizeof(float) + kLine) / kLine * kLine;
  memory_.reset(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
  if (!memory_) throw std::bad_alloc();
  std::memset(memory_.get(), 0, bytes);
}

int64_t num_instruction_sets() {
#if defined(QRNN_X86)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!has_512) return 2;
  return __builtin_cpu_supports("avx512vnni") ? 4 : 3;
#else
  return 1;
#endif
}

namespace {

uint16_t half_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Not a number stays one: rounding could make it infinite.
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

void pack(const Kernels& kernels, const float* source, int64_t stride, bool transposed,
          int64_t inner, int64_t outer, bool halves, Matrix& matrix) {
  const int64_t panel = kernels.panel, panels = (outer + panel - 1) / panel;
  matrix.inner = inner;
  matrix.outer = outer;
  matrix.halves = halves;
  matrix.numbers = Numbers(halves ? (panels * panel * inner + 1) / 2 : panels * panel * inner);
  float* const wholes = matrix.numbers.data();
  for (int64_t first = 0; first < outer; first += panel) {
    const int64_t columns = std::min(panel, outer - first), start = first * inner;
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t k = 0; k < inner; ++k) {
        const int64_t to = start + k * panel + j;
        const float x = source[transposed ? k * stride + first + j : (first + j) * stride + k];
        if (halves) {
          const uint16_t half = half_of(x);
          std::memcpy(reinterpret_cast<char*>(wholes) + 2 * to, &half, sizeof half);
        } else {
          wholes[to] = x;
        }
      }
    }
  }
}

void pack_int8(const Kernels& kernels, const int8_t* source, const float* scales, int64_t inner,
               int64_t outer, Matrix& matrix) {
  const int64_t panel = kernels.panel, panels = (outer + panel - 1) / panel;
  const int64_t groups = (inner + kGroup - 1) / kGroup;
  matrix.inner = inner;
  matrix.outer = outer;
  matrix.numbers = Numbers(panels * panel * groups);  // one for each group
  matrix.scales = Numbers(panels * panel);
  matrix.shifts.assign(static_cast<size_t>(panels * panel), 0);
  std::memcpy(matrix.scales.data(), scales, static_cast<size_t>(outer) * sizeof(float));
  int8_t* const bytes = reinterpret_cast<int8_t*>(matrix.numbers.data());
  for (int64_t j = 0; j < outer; ++j) {
    int8_t* const column = bytes + (j / panel * panel * groups + j % panel) * kGroup;
    int32_t sum = 0;
    for (int64_t k = 0; k < inner; ++k) {
      const int8_t x = source[j * inner + k];
      column[k / kGroup * panel * kGroup + k % kGroup] = x;
      sum += x;
    }
    matrix.shifts[static_cast<size_t>(j)] = -128 * sum;
  }
}

const Kernels* kernels_of(int64_t instruction_set) {
#if defined(QRNN_X86)
  if (instruction_set == 3) return &vnni::kKernels;
  if (instruction_set == 2) return &avx512::kKernels;
  if (instruction_set == 1) return &avx2::kKernels;
#endif
  (void)instruction_set;
  return &baseline::kKernels;
}

namespace {

// Takes what describes a network in the order in which native.py writes it.
struct Reader {
  const Kernels& kernels;
  bool halves;
  const int64_t* fields;
  const void* const* weights;
  void (*taken)();

  int64_t field() { return *fields++; }
  // Of float32; or of int8, with scales in a second place, which is null else.
  Matrix matrix(int64_t outer, int64_t inner) {
    Matrix result;
    const void *source = *weights++, *scales = *weights++;
    if (!source) return result;
    if (scales) {
      pack_int8(kernels, static_cast<const int8_t*>(source), static_cast<const float*>(scales),
                inner, outer, result);
    } else {
      pack(kernels, static_cast<const float*>(source), inner, false, inner, outer, halves, result);
    }
    taken();
    return result;
  }
  Numbers numbers(int64_t size) {
    const float* source = static_cast<const float*>(*weights++);
    if (!source) return Numbers();
    Numbers result(size);
    std::memcpy(result.data(), source, static_cast<size_t>(size) * sizeof(float));
    return result;
  }
};

Layer read_layer(Reader& reader, const Network& network, bool decodes) {
  const int64_t hidden = network.hidden;
  Layer layer;
  layer.input_size = reader.field();
  layer.kernel_size = reader.field();
  layer.adds_input = reader.field() != 0;
  layer.keeps_input = reader.field() != 0;
  layer.attends = static_cast<Attention>(reader.field());
  layer.reverses.resize(static_cast<size_t>(reader.field()));
  for (size_t i = 0; i < layer.reverses.size(); ++i) layer.reverses[i] = reader.field() != 0;
  const int64_t rows = network.num_gates * hidden / static_cast<int64_t>(layer.reverses.size());
  for (size_t i = 0; i < layer.reverses.size(); ++i) {
    layer.convolutions.push_back(reader.matrix(rows, layer.kernel_size * layer.input_size));
    layer.biases.push_back(reader.numbers(rows));
  }
  layer.norm = reader.numbers(layer.input_size);
  layer.has_feed_forward = network.inner > 0;
  if (layer.has_feed_forward) {
    layer.feed_forward.norm = reader.numbers(hidden);
    layer.feed_forward.gate = reader.matrix(network.inner, hidden);
    layer.feed_forward.in = reader.matrix(network.inner, hidden);
    layer.feed_forward.out = reader.matrix(hidden, network.inner);
  }
  if (decodes) layer.encoding = reader.matrix(rows, hidden);
  if (layer.attends == Attention::output) {
    layer.context = reader.matrix(hidden, hidden);
    layer.cell = reader.matrix(hidden, hidden);
  }
  if (layer.attends == Attention::block) {
    layer.attention_norm = reader.numbers(hidden);
    layer.query = reader.matrix(hidden, hidden);
    layer.key_value = reader.matrix(2 * hidden, hidden);
    layer.out = reader.matrix(hidden, hidden);
  }
  return layer;
}

}  // namespace

std::unique_ptr<Network> make_network(const int64_t* fields, double score_scale,
                                      const void* const* weights, int64_t instruction_set,
                                      void (*taken)()) {
  auto network = std::make_unique<Network>();
  network->kernels = kernels_of(instruction_set);
  network->score_scale = static_cast<float>(score_scale);
  Reader reader{*network->kernels, false, fields, weights, taken};
  network->pooling = static_cast<int>(reader.field());
  network->num_gates = reader.field();
  network->hidden = reader.field();
  network->embedding_size = reader.field();
  network->vocab = reader.field();
  network->heads = reader.field();
  network->inner = reader.field();
  network->causal = reader.field() != 0;
  network->projects = reader.field() != 0;
  reader.halves = reader.field() != 0;
  const int64_t encoder_layers = reader.field(), decoder_layers = reader.field();
  const int64_t hidden = network->hidden, embed = network->embedding_size;
  network->embedding = reader.numbers(network->vocab * embed);
  for (int64_t i = 0; i < encoder_layers; ++i) {
    network->encoder.push_back(read_layer(reader, *network, false));
  }
  for (int64_t i = 0; i < decoder_layers; ++i) {
    network->decoder.push_back(read_layer(reader, *network, true));
  }
  network->encoder_norm = reader.numbers(hidden);
  network->decoder_norm = reader.numbers(hidden);
  network->projection = reader.matrix(embed, hidden);
  const int64_t width = reader.field();
  network->output = reader.matrix(network->vocab, width);
  network->output_bias = reader.numbers(network->vocab);
  return network;
}

void add_feed_forward(const Network& network, const FeedForward& block, int64_t rows, float* x) {
  const Kernels& k = *network.kernels;
  const int64_t hidden = network.hidden, inner = network.inner;
  // Some rows at once, or a long source would need as much memory again.
  const int64_t most = std::min<int64_t>(rows, 96);
  Numbers normed(most * hidden), gate(most * inner), in(most * inner);
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    float* own = x + first * hidden;
    for (int64_t r = 0; r < count; ++r) {
      k.normalize(own + r * hidden, block.norm.data(), hidden, normed.data() + r * hidden);
    }
    k.product(normed.data(), hidden, count, block.gate.panels(), nullptr, gate.data(), inner, false);
    k.product(normed.data(), hidden, count, block.in.panels(), nullptr, in.data(), inner, false);
    k.gate_inner(gate.data(), count * inner, in.data());
    k.product(in.data(), inner, count, block.out.panels(), nullptr, own, hidden, true);
  }
}

namespace {

// One direction of a layer over one source: inputs x (S, E) to h (S, H') in place in `out`, whose
// rows lie `stride` apart, and h~ (H').
void run_direction(const Network& network, const Layer& layer, size_t way, const float* x,
                   int64_t length, float* out, int64_t stride, float* h_tilde,
                   const int32_t* stop) {
  const Kernels& k = *network.kernels;
  const bool reverse = layer.reverses[way];
  const int64_t width = layer.input_size, before = layer.kernel_size - 1;
  const int64_t units = network.hidden / static_cast<int64_t>(layer.reverses.size());
  const int64_t left = network.causal ? before : before / 2, gates = network.num_gates * units;
  // In processing order, zeros on both sides: the window of a step lies in one piece.
  Numbers padded((length + before) * width), c(units), h(units);
  for (int64_t s = 0; s < length; ++s) {
    const int64_t from = reverse ? length - 1 - s : s;
    std::memcpy(padded.data() + (left + s) * width, x + from * width,
                static_cast<size_t>(width) * sizeof(float));
  }
  const int64_t most = std::min<int64_t>(length, 96);
  Numbers activations(most * gates);
  for (int64_t first = 0; first < length; first += most) {
    if (stop && __atomic_load_n(stop, __ATOMIC_RELAXED)) throw Stopped();
    const int64_t count = std::min(most, length - first);
    k.product(padded.data() + first * width, width, count, layer.convolutions[way].panels(),
              layer.biases[way].data(), activations.data(), gates, false);
    for (int64_t s = first; s < first + count; ++s) {
      float* row = out + (reverse ? length - 1 - s : s) * stride;
      k.pool(network.pooling, activations.data() + (s - first) * gates, nullptr, units, c.data(),
             row, nullptr);
      if (s == length - 1) std::memcpy(h_tilde, row, static_cast<size_t>(units) * sizeof(float));
    }
  }
}

// One layer over one source: x (S, E) to the output (S, H or E + H) and h~ (H).
Numbers run_encoder_layer(const Network& network, const Layer& layer, const Numbers& x,
                          int64_t length, float* h_tilde, const int32_t* stop) {
  const Kernels& k = *network.kernels;
  const int64_t width = layer.input_size, hidden = network.hidden;
  Numbers normed;
  const float* inputs = x.data();
  if (layer.norm.size()) {
    normed = Numbers(length * width);
    for (int64_t s = 0; s < length; ++s) {
      k.normalize(inputs + s * width, layer.norm.data(), width, normed.data() + s * width);
    }
    inputs = normed.data();
  }
  Numbers out(length * hidden);
  const int64_t units = hidden / static_cast<int64_t>(layer.reverses.size());
  for (size_t way = 0; way < layer.reverses.size(); ++way) {
    const int64_t at = static_cast<int64_t>(way) * units;
    run_direction(network, layer, way, inputs, length, out.data() + at, hidden, h_tilde + at, stop);
  }
  if (layer.adds_input) {
    for (int64_t i = 0; i < length * hidden; ++i) out.data()[i] += x.data()[i];
  }
  if (layer.has_feed_forward) add_feed_forward(network, layer.feed_forward, length, out.data());
  if (!layer.keeps_input) return out;
  Numbers both(length * (width + hidden));
  for (int64_t s = 0; s < length; ++s) {
    float* row = both.data() + s * (width + hidden);
    std::memcpy(row, x.data() + s * width, static_cast<size_t>(width) * sizeof(float));
    std::memcpy(row + width, out.data() + s * hidden, static_cast<size_t>(hidden) * sizeof(float));
  }
  return both;
}

}  // namespace

Encoded encode(const Network& network, const int64_t* ids, const std::vector<int64_t>& lengths,
               const int32_t* stop) {
  const int64_t hidden = network.hidden, embed = network.embedding_size;
  const int64_t sources = static_cast<int64_t>(lengths.size());
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;
  Encoded encoded;
  encoded.states = Numbers(total * hidden);
  for (size_t i = 0; i < network.encoder.size(); ++i) encoded.finals.emplace_back(sources * hidden);
  float* states = encoded.states.data();
  for (int64_t b = 0; b < sources; ++b) {
    const int64_t length = lengths[static_cast<size_t>(b)];
    Numbers x(length * embed);
    for (int64_t s = 0; s < length; ++s) {
      std::memcpy(x.data() + s * embed, network.embedding.data() + *ids++ * embed,
                  static_cast<size_t>(embed) * sizeof(float));
    }
    for (size_t i = 0; i < network.encoder.size(); ++i) {
      x = run_encoder_layer(network, network.encoder[i], x, length,
                            encoded.finals[i].data() + b * hidden, stop);
    }
    for (int64_t s = 0; s < length; ++s, states += hidden) {
      const float* row = x.data() + s * hidden;
      if (network.encoder_norm.size()) {
        network.kernels->normalize(row, network.encoder_norm.data(), hidden, states);
      } else {
        std::memcpy(states, row, static_cast<size_t>(hidden) * sizeof(float));
      }
    }
  }
  return encoded;
}

}  // namespace engine
}  // namespace hf_qrnn
