// Runs both forms of the CUDA kernels on the CPU and compares them with a plain loop: a program of
// its own, so that thread and address sanitizers can watch. Exits with 1 where a number is off.
#include "pool_launch.cuh"

#include <cstdio>
#include <random>

namespace {

using namespace hf_qrnn;
using namespace hf_qrnn::gpu;

struct Shape {
  int64_t batch, length, hidden;
};

double logistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }

inline double value_of(float x) { return x; }
inline double value_of(__nv_bfloat16 x) { return __bfloat162float(x); }
inline double value_of(__half x) { return __half2float(x); }
inline void assign(float x, float& y) { y = x; }
inline void assign(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }
inline void assign(float x, __half& y) { y = __float2half_rn(x); }

template <typename T, Pooling P>
class Case {
  using S = State<T>;
  static constexpr int G = num_gates(P);

 public:
  Case(Shape shape, bool options) : shape_(shape), options_(options) {
    const int64_t rows = shape.batch * shape.length, channels = G * shape.hidden;
    fill(gates_, rows * channels);
    fill(bias_, shape.batch * channels);
    fill(initial_, shape.batch * shape.hidden);
    fill(grad_h_, rows * shape.hidden);
    fill(grad_c_, rows * shape.hidden);
    fill(grad_state_, shape.batch * shape.hidden);
    mask_.reset(new bool[static_cast<size_t>(rows)]);
    for (int64_t k = 0; k < rows; ++k) mask_[k] = random_() % 5 != 0;
  }

  // The largest difference of any output from the plain loop's.
  double check(Form form) {
    const PoolInputs<T, S> in = inputs();
    const int64_t tiles = (shape_.length + kTile - 1) / kTile;
    const int64_t states = shape_.batch * shape_.hidden;
    std::vector<T> h(grad_h_.size()), grad_gates(gates_.size());
    std::vector<S> c(grad_h_.size()), state(states), starts(states * tiles), grad_initial(states);
    std::vector<S> grad_bias(bias_.size());
    launch_forward<T, P>(in, {h.data(), c.data(), state.data(), starts.data()}, form, nullptr);
    launch_backward<T, P>(in,
                          {grad_h_.data(), grad_c_.data(), grad_state_.data(), starts.data(),
                           grad_gates.data(), options_ ? grad_bias.data() : nullptr,
                           grad_initial.data()},
                          form, nullptr);
    worst_ = 0;
    for (int64_t b = 0; b < shape_.batch; ++b) {
      for (int64_t channel = 0; channel < shape_.hidden; ++channel) {
        compare(in, b, channel, h, c, state, grad_gates, grad_bias, grad_initial);
      }
    }
    return worst_;
  }

 private:
  template <typename X>
  void fill(std::vector<X>& x, int64_t count) {
    std::normal_distribution<float> normal;
    x.resize(static_cast<size_t>(count));
    for (X& number : x) assign(normal(random_), number);
  }

  PoolInputs<T, S> inputs() const {
    const int64_t channels = G * shape_.hidden;
    return {gates_.data(),
            shape_.length * channels,
            channels,
            options_ ? bias_.data() : nullptr,
            options_ ? initial_.data() : nullptr,
            options_ ? mask_.get() : nullptr,
            shape_.length,
            1,
            options_ ? &seed_ : nullptr,
            options_ ? 3000000u : 0u,
            shape_.batch,
            shape_.length,
            shape_.hidden,
            options_};
  }

  void expect(double found, double wanted, double tolerance) {
    const double difference = std::abs(found - wanted) / tolerance;
    if (!(difference <= worst_)) worst_ = difference;
  }

  void compare(const PoolInputs<T, S>& in, int64_t b, int64_t channel, const std::vector<T>& h,
               const std::vector<S>& c, const std::vector<S>& state,
               const std::vector<T>& grad_gates, const std::vector<S>& grad_bias,
               const std::vector<S>& grad_initial) {
    const int64_t length = shape_.length, hidden = shape_.hidden;
    const double fine = 1e-5, coarse = sizeof(T) == 2 ? 5e-2 : 1e-5;
    struct Step {
      double z, f, o, write, before, after;
      bool real, kept;
    };
    std::vector<Step> steps(static_cast<size_t>(length));
    double now = options_ ? value_of(initial_[b * hidden + channel]) : 0.0;
    for (int64_t s = 0; s < length; ++s) {
      const int64_t t = in.reverse ? length - 1 - s : s;
      double x[4] = {};
      for (int g = 0; g < G; ++g) {
        x[g] = value_of(gates_[(b * length + t) * G * hidden + g * hidden + channel]);
        if (options_) x[g] += value_of(bias_[(b * G + g) * hidden + channel]);
      }
      Step& step = steps[static_cast<size_t>(s)];
      step.real = !options_ || mask_[b * length + t];
      step.kept = options_ && !keeps(zoneout_key(seed_, b, t), channel, in.zoneout_threshold);
      step.z = std::tanh(x[0]);
      step.f = !step.real || step.kept ? 1.0 : logistic(x[1]);
      step.o = !step.real ? 0.0 : P == Pooling::f ? 1.0 : logistic(x[2]);
      step.write = !step.real ? 0.0 : P == Pooling::ifo ? logistic(x[3]) : 1.0 - step.f;
      step.before = now;
      step.after = now = step.f * now + step.write * step.z;
      expect(value_of(h[(b * length + t) * hidden + channel]), step.o * now, coarse);
      expect(c[(b * length + t) * hidden + channel], now, fine);
    }
    expect(state[b * hidden + channel], now, fine);
    double flow = grad_state_[b * hidden + channel], sums[4] = {};
    for (int64_t s = length - 1; s >= 0; --s) {
      const Step& step = steps[static_cast<size_t>(s)];
      const int64_t t = in.reverse ? length - 1 - s : s, at = (b * length + t) * hidden + channel;
      const double from_h = value_of(grad_h_[at]);
      const double grad = from_h * step.o + grad_c_[at] + flow;
      const bool free = step.real && !step.kept;
      const double change = P == Pooling::ifo ? step.before : step.before - step.z;
      const double grads[4] = {
          grad * step.write * (1 - step.z * step.z),
          free ? grad * change * step.f * (1 - step.f) : 0.0,
          from_h * step.after * step.o * (1 - step.o),
          grad * step.z * step.write * (1 - step.write),
      };
      for (int g = 0; g < G; ++g) {
        sums[g] += grads[g];
        expect(value_of(grad_gates[(b * length + t) * G * hidden + g * hidden + channel]), grads[g],
               coarse);
      }
      flow = step.f * grad;
    }
    expect(grad_initial[b * hidden + channel], flow, fine);
    for (int g = 0; g < G && options_; ++g) {
      expect(grad_bias[(b * G + g) * hidden + channel], sums[g], 5 * fine);
    }
  }

  Shape shape_;
  bool options_;
  std::mt19937 random_{7};
  int64_t seed_ = 11;
  std::vector<T> gates_, bias_, grad_h_;
  std::vector<S> initial_, grad_c_, grad_state_;
  std::unique_ptr<bool[]> mask_;
  double worst_ = 0;
};

template <typename T, Pooling P>
bool is_right(const char* name) {
  bool right = true;
  // Odd and even rows; one step; several chunks of the split form in both directions.
  for (const Shape& shape : {Shape{2, 1, 1}, Shape{2, 40, 5}, Shape{1, 140, 6}}) {
    for (const bool options : {false, true}) {
      for (const Form form : {Form::stream, Form::split}) {
        const double worst = Case<T, P>(shape, options).check(form);
        if (worst <= 1.0) continue;
        right = false;
        std::printf("%s, %s: length %lld is off by %g tolerances\n", name,
                    form == Form::split ? "split" : "stream", static_cast<long long>(shape.length),
                    worst);
      }
    }
  }
  return right;
}

}  // namespace

int main() {
  bool right = is_right<float, Pooling::fo>("fo in float32");
#if !defined(QRNN_WITHOUT_CARRY_BARRIER)
  right &= is_right<__nv_bfloat16, Pooling::ifo>("ifo in bfloat16");
  right &= is_right<__half, Pooling::f>("f in float16");
#endif
  if (right) std::printf("all right\n");
  return right ? 0 : 1;
}
