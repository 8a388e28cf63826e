// Decodes with the engine as a recording says, without Python: tests/engine/test_other_processors.py.
//
// The recording is of 64-bit words: the instruction set; numbers and weights of a network; sources;
// rows of each; tokens of some steps, with the rows to go on with between them; a greedy search.
// What is written: the number of instruction sets, logits of every step, and what was found.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" {
int64_t qrnn_num_instruction_sets();
void* qrnn_network_new(const int64_t*, double, const void* const*, int64_t, void (*)());
void qrnn_network_free(void*);
void* qrnn_decoder_new(const void*, const int64_t*, const int64_t*, int64_t, int64_t,
                       const int32_t*);
void qrnn_decoder_free(void*);
int64_t qrnn_decoder_step(void*, const int64_t*, float*);
int64_t qrnn_decoder_select(void*, const int64_t*, int64_t, const int64_t*, int64_t);
int64_t qrnn_decoder_greedy(void*, int64_t, const int64_t*, int64_t, const int64_t*, int64_t,
                            int64_t*, int64_t*, double*);
}

namespace {

struct Reader {
  const int64_t* at;

  int64_t word() { return *at++; }
  const int64_t* words(int64_t count) {
    const int64_t* first = at;
    at += count;
    return first;
  }
};

template <typename T>
void write(std::ofstream& out, const std::vector<T>& values) {
  out.write(reinterpret_cast<const char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(T)));
}

constexpr int64_t kDone = 1;  // of greedy search: every row has ended

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<int64_t> recording(bytes.size() / sizeof(int64_t));
  std::memcpy(recording.data(), bytes.data(), recording.size() * sizeof(int64_t));
  std::ofstream out(argv[2], std::ios::binary);
  write(out, std::vector<int64_t>{qrnn_num_instruction_sets()});

  Reader reader{recording.data()};
  const int64_t set = reader.word(), vocab = reader.word();
  double scale;
  std::memcpy(&scale, reader.words(1), sizeof scale);
  const int64_t* fields = reader.words(reader.word());
  std::vector<const void*> weights(static_cast<size_t>(reader.word()));
  for (const void*& weight : weights) {
    const int64_t size = reader.word();  // 0 where there is none
    weight = size ? reader.words(size) : nullptr;
  }
  void* const network = qrnn_network_new(fields, scale, weights.data(), set, [] {});
  if (!network) return 3;

  const int64_t sources = reader.word();
  const int64_t* lengths = reader.words(sources);
  const int64_t* ids = reader.words(reader.word());
  const int64_t rows = reader.word() * sources, steps = reader.word();
  void* decoder = qrnn_decoder_new(network, ids, lengths, sources, rows / sources, nullptr);
  if (!decoder) return 3;
  std::vector<float> logits(static_cast<size_t>(rows * vocab));
  for (int64_t step = 0; step < steps; ++step) {
    if (qrnn_decoder_step(decoder, reader.words(rows), logits.data())) return 4;
    write(out, logits);
    if (qrnn_decoder_select(decoder, reader.words(rows), rows, nullptr, 0)) return 4;
  }
  qrnn_decoder_free(decoder);

  decoder = qrnn_decoder_new(network, ids, lengths, sources, 1, nullptr);
  if (!decoder) return 3;
  const int64_t start = reader.word(), end = reader.word();
  const int64_t* limits = reader.words(sources);
  const int64_t width = reader.word();
  std::vector<int64_t> found(static_cast<size_t>(sources * width)), sizes(static_cast<size_t>(sources));
  std::vector<double> scores(static_cast<size_t>(sources));
  if (qrnn_decoder_greedy(decoder, start, &end, 1, limits, width, found.data(), sizes.data(),
                          scores.data()) != kDone) {
    return 4;
  }
  write(out, found);
  write(out, sizes);
  write(out, scores);
  qrnn_decoder_free(decoder);
  qrnn_network_free(network);
  return out ? 0 : 5;
}
