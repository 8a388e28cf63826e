// Runs the connection's CUDA kernels on the CPU and compares them with a plain loop: a program of
// its own, so that thread and address sanitizers can watch. Exits with 1 where a number is off.
#include <cstdio>
#include <random>

#include "connect_launch.cuh"

namespace {

using namespace hf_qrnn;
using namespace hf_qrnn::gpu;

template <typename T>
constexpr Number kNumber = Number::float32;
template <>
constexpr Number kNumber<__nv_bfloat16> = Number::bfloat16;
template <>
constexpr Number kNumber<__half> = Number::float16;

// Numbers that begin `shift` beyond an aligned address.
template <typename T>
struct Numbers {
  Numbers(int64_t count, int64_t shift) : shift(shift), all(static_cast<size_t>(count + shift)) {}
  Numbers(int64_t count, int64_t shift, std::mt19937& random) : Numbers(count, shift) {
    std::normal_distribution<float> normal;
    for (T& number : all) narrow(normal(random), number);
  }
  T operator[](int64_t k) const { return all[static_cast<size_t>(k + shift)]; }
  T* data() { return all.data() + shift; }
  Rows to() { return {data(), kNumber<T>}; }
  ConstRows from() { return {data(), kNumber<T>}; }

  int64_t shift;
  std::vector<T> all;
};

// `off` becomes the largest difference, in tolerances.
void expect(double found, double wanted, double tolerance, double& off) {
  const double difference = std::abs(found - wanted) / tolerance / std::max(1.0, std::abs(wanted));
  if (!(difference <= off)) off = difference;
}

// h and its gradient in A, residual and out in float, normed and its gradient in C.
template <typename A, typename C>
double check(int64_t batch, int64_t length, int64_t hidden, int64_t shift = 0) {
  const int64_t rows = batch * length, count = rows * hidden;
  const int64_t seed = 11;
  const double eps = 1e-3, fine = 1e-5, coarse = 1e-2;
  const Dropout dropout = {&seed, 20000, 65536.0 / (65536 - 20000)};
  std::mt19937 random(7);
  Numbers<A> h(count, shift, random), grad_h(count, shift);
  Numbers<C> grad_normed(count, shift, random), normed(count, shift);
  Numbers<float> residual(count, shift, random), weight(hidden, shift, random);
  Numbers<float> grad_out(count, shift, random), out(count, shift), grad_residual(count, shift);
  Numbers<float> inverse(rows, shift), parts(parts_of<float>(rows, hidden) * hidden, shift);
  Numbers<float> grad_weight(hidden, shift);
  launch_connect_forward<float>(
      {h.from(), residual.from(), weight.from(), dropout, eps, batch, length, hidden},
      {out.to(), normed.to(), inverse.data()}, nullptr);
  launch_connect_backward<float>(
      {grad_out.from(), grad_normed.from(), out.from(), weight.from(), inverse.data(), dropout,
       grad_h.to(), grad_residual.to(), parts.data(), batch, length, hidden},
      grad_weight.data(), nullptr);
  double off = 0;
  std::vector<double> totals(weight.all.size()), sum(weight.all.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * hidden;
    const uint64_t key = zoneout_key(seed, row / length, row % length);
    const auto scale = [&](int64_t c) {
      const uint64_t draw = dropout_draw(key, c / 4);
      return dropout_keeps(draw, static_cast<int>(c % 4), dropout.threshold) ? dropout.scale : 0;
    };
    double squares = 0, products = 0;
    for (int64_t c = 0; c < hidden; ++c) {
      sum[c] = residual[at + c] + widen(h[at + c]) * scale(c);
      squares += sum[c] * sum[c];
      expect(out[at + c], sum[c], fine, off);
    }
    const double r = 1 / std::sqrt(squares / hidden + eps);
    for (int64_t c = 0; c < hidden; ++c) {
      const double given = widen(grad_normed[at + c]);
      expect(widen(normed[at + c]), sum[c] * r * weight[c], coarse, off);
      products += given * weight[c] * sum[c] * r;
      totals[c] += given * sum[c] * r;
    }
    for (int64_t c = 0; c < hidden; ++c) {
      const double a = widen(grad_normed[at + c]) * weight[c];
      const double grad = grad_out[at + c] + r * (a - sum[c] * r * products / hidden);
      expect(grad_residual[at + c], grad, fine, off);
      expect(widen(grad_h[at + c]), grad * scale(c), coarse, off);
    }
  }
  for (int64_t c = 0; c < hidden; ++c) expect(grad_weight[c], totals[c], 3 * fine, off);
  return off;
}

bool report(const char* name, double off) {
  if (off > 1) std::printf("%s is off by %g tolerances\n", name, off);
  return off <= 1;
}

}  // namespace

int main() {
  bool right = report("a warp's row", check<__nv_bfloat16, __half>(2, 9, 36));
  right &= report("a block's row", check<float, float>(1, 7, 1100));
#if !defined(QRNN_WITHOUT_TEAM_BARRIER)
  right &= report("an odd row", check<float, __nv_bfloat16>(3, 1, 7));
  right &= report("a row off its address", check<float, __nv_bfloat16>(3, 1, 8, 1));
  right &= report("a row in two runs", check<__half, float>(1, 4, 4101));
#endif
  if (right) std::printf("all right\n");
  return right ? 0 : 1;
}
