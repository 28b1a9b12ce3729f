// The stepwise scan, for weights that the multiprocessors do not hold together, and for float64:
// each step is one product by cuBLAS, which reads them again, and one launch for all the rest of the
// step; or two of each, with an inner step.
//
// What a launch leaves for the next product and launch does not lie by time, so that the same ones
// serve groups of both directions. The host neither allocates nor waits: a graph can capture it.
#pragma once
#include <algorithm>
#include "row_backward.h"
#include "row_forward.h"

namespace rnnkit {

template <class Pass, bool INNER>
KERNEL(Pass::Row::THREADS, Pass::Row::BLOCKS)
void one_launch(const Arguments a, const Form form, const Steps steps, const int k) {
    const Pass pass = {{a, form, steps}};
    if constexpr (INNER) pass.inner(k);
    else pass.step(k);
}

template <class Kind, class C, bool BACKWARD> struct Loop {
    using S = typename Kind::S;
    using Row = rnnkit::Row<S, C>;
    using Pass = std::conditional_t<BACKWARD, RowBackward<S, C>, RowForward<S, C>>;
    // With an inner step, the products before it and after it.
    using First = std::conditional_t<BACKWARD, typename Row::Last, typename Row::Early>;
    using Second = std::conditional_t<BACKWARD, typename Row::Early, typename Row::Last>;

    const Arguments& a;
    const Form& form;
    const Steps& steps;

    // 0; what launch_error() describes; or cuBLAS's status, negative.
    int run() const {
        int error = 0;
        for (int k = 0; error == 0 && k <= a.T; ++k) {
            if (k > 0) error = multiply(k);
            if (error == 0) error = go<false>(k);
        }
        return error;
    }

    // All products of step k.
    int multiply(int k) const {
        int error = product<First>();
        if constexpr (Row::INNER) {
            if (error == 0) error = go<true>(k);
            if (error == 0) error = product<Second>();
        }
        return error;
    }

    // product = fed @ w.T of every group, for the rows of w (G * H, H) that serve some gates;
    // backward fed @ w. All of them lie by rows: by columns they are transposed, and so
    // product.T = w @ fed.T.
    template <class P> int product() const {
        constexpr int w_is = BACKWARD ? cublas::AS_IS : cublas::TRANSPOSED;
        const typename Kind::Sum one = 1, zero = 0;
        const int64_t all = C::gates * a.H, some = P::COUNT * a.H, begin = P::FIRST * a.H;
        const int64_t fed = BACKWARD ? all : a.H, made = BACKWARD ? a.H : all;
        const auto from = static_cast<const S*>(steps.fed) + (BACKWARD ? begin : 0);
        const auto to = static_cast<typename Kind::Sum*>(steps.product) + (BACKWARD ? 0 : begin);
        return -steps.gemm(steps.handle, w_is, cublas::AS_IS, int(BACKWARD ? a.H : some), int(a.B),
                           int(BACKWARD ? some : a.H), &one,
                           static_cast<const S*>(a.w) + begin * a.H, Kind::type, int(a.H),
                           all * a.H, from, Kind::type, int(a.N * fed), fed, &zero, to,
                           Kind::sum_type, int(a.N * made), made, int(a.N), Kind::compute,
                           cublas::DEFAULT);
    }

    template <bool INNER> int go(int k) const {
        constexpr int warp = 32;
        const int64_t units = (a.H + warp - 1) / warp * warp;
        Launch how;
        how.threads = int(std::min<int64_t>(units, Row::THREADS));
        how.x = int(a.B * a.N);
        how.y = Row::WHOLE ? 1 : int((a.H + how.threads - 1) / how.threads);
        how.shared_bytes = Row::WHOLE ? RowNorm<Row, C::gates>::shared_bytes(how.threads) : 0;
        how.stream = form.stream;
        return launch(one_launch<Pass, INNER>, how, a, form, steps, k);
    }
};

}  // namespace rnnkit
