#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"

namespace stochprune {

uint16_t exact_threshold(double logit) {
  const double t = std::floor(32768.0 / (1.0 + std::exp(-logit)) + 0.5);
  return t > 32767.0 ? 32767 : t < 1.0 ? 1 : uint16_t(t);
}

namespace {

float smallest_float_reaching(int t) {
  // The threshold is a monotone step function of the logit: start at its inverse, then walk to the exact float.
  const double p = (t - 0.5) / 32768.0;
  float x = float(std::log(p) - std::log1p(-p));
  const float inf = std::numeric_limits<float>::infinity();
  while (exact_threshold(x) >= t) x = std::nextafter(x, -inf);
  while (exact_threshold(x) < t) x = std::nextafter(x, inf);
  return x;
}

}  // namespace

const Tables& tables() {
  static const std::vector<float> bound = [] {
    std::vector<float> b(32769);
    b[0] = b[1] = -std::numeric_limits<float>::infinity();  // thresholds are clamped to 1 .. 32767
    for (int t = 2; t <= 32767; ++t) b[t] = smallest_float_reaching(t);
    b[32768] = std::numeric_limits<float>::quiet_NaN();  // no logit reaches it, not even infinity
    return b;
  }();
  static const std::vector<float> logit = [] {
    std::vector<float> l(32768);
    for (int u = 0; u < 32768; ++u) {
      const double v = (u + 0.5) / 32768.0;
      l[u] = float(std::log(v) - std::log1p(-v));
    }
    return l;
  }();
  static const std::vector<double> entropy = [] {
    std::vector<double> e(32769, 0.0);
    for (int t = 1; t < 32768; ++t) {
      const double q = t / 32768.0;
      e[t] = q * std::log(q) + (1 - q) * std::log1p(-q);
    }
    return e;
  }();
  // Each piece is the parabola through its three Chebyshev nodes, plus 1/2, to be truncated.
  static const std::vector<float> curve = [] {
    std::vector<float> c(3 * 32);
    for (int i = 0; i < 32; ++i) {
      const double h = std::sqrt(0.75) / 2, s[3] = {0.5 - h, 0.5, 0.5 + h};
      double y[3];
      for (int j = 0; j < 3; ++j) y[j] = 32768.0 / (1.0 + std::exp(kCurveEnd * (1 - (i + s[j]) / 16))) + 0.5;
      const double slope = (y[2] - y[0]) / (2 * h), bend = (y[2] - 2 * y[1] + y[0]) / (2 * h * h);
      c[i] = float(y[1] - slope * s[1] + bend * s[1] * s[1]);
      c[32 + i] = float(slope - 2 * bend * s[1]);
      c[64 + i] = float(bend);
    }
    return c;
  }();
  static const Tables t{bound.data(), logit.data(), entropy.data(), curve.data()};
  return t;
}

}  // namespace stochprune
