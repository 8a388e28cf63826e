// Which form of the kernels runs, and in what blocks: plain host code, so that a test can ask.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hf_qrnn::gpu {

enum class Form : int { stream = 0, split = 1 };
enum class Direction : int { forward = 0, backward = 1 };

// A block of `lanes` threads across channels times `slices` of time, which is 1 for streams.
struct Plan {
  Form form;
  int lanes;
  int slices;
};

struct Rule {
  int64_t min_length;
  int64_t max_states;  // rows times hidden
  Form form;
};

// The first rule that fits decides. To keep memory busy some 3 MB must be on their way (Little's
// law for 4 TB/s and 0.7 us). A stream has 16 steps of 2 to 16 bytes a gate on its way for every
// state, 8 steps in the backward pass: 32k states of 16-bit fo-pooling come near, fewer must divide
// time. Below a tile of steps there is no time to divide. Calculated, not measured.
constexpr Rule kRules[] = {
    {32, 32767, Form::split},
    {0, INT64_MAX, Form::stream},
};

// The form that runs whatever the rules say; -1 for none. Benchmarks that measure the rules set it.
inline int& forced_form() {
  static int form = -1;
  return form;
}

// float64 is for checking gradients, and always streams: half of the kernels for it.
inline Form choose_form(int64_t batch, int64_t length, int64_t hidden, bool can_split) {
  if (can_split && forced_form() >= 0) return static_cast<Form>(forced_form());
  for (const Rule& rule : kRules) {
    const bool fits = length >= rule.min_length && batch * hidden <= rule.max_states;
    if (fits && (can_split || rule.form == Form::stream)) return rule.form;
  }
  return Form::stream;
}

// A block of the split form has at most `max_threads` threads, each with `slice` steps. 8 lanes
// read whole 32-byte sectors; up to 32 as long as there are two blocks for each of 132
// multiprocessors. The backward pass wants whole tiles.
inline Plan plan_split(Direction direction, int64_t batch, int64_t length, int64_t packs,
                       int max_threads, int slice, int tile) {
  int lanes = 32;
  while (lanes > 8 && batch * ((packs + lanes - 1) / lanes) < 264) lanes /= 2;
  lanes = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(packs, lanes)));
  const int64_t room = max_threads / std::max(lanes, 8);
  int64_t slices = std::max<int64_t>(1, std::min<int64_t>(room, (length + slice - 1) / slice));
  if (direction == Direction::backward) {
    const int64_t whole = tile / slice;
    slices = (slices + whole - 1) / whole * whole;
  }
  return {Form::split, lanes, static_cast<int>(slices)};
}

}  // namespace hf_qrnn::gpu
