// What layers without products do on panels: normalisations, sums, gains, embeddings. Each has a way forward for some
// output panels of some rows, the gradients of its parameters, and a way back to its inputs' errors.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/net.h"

namespace gradstep {

// How a layer's inputs get their errors: whether a later layer wrote some already, and whether no earlier one will, so
// that the activation below is next. The same of a sum's other input.
struct Links {
    bool keep = false, last = true;
    bool keep_other = false, last_other = true;
};

inline std::vector<Links> links_of(const Plan& plan) {
    const auto depth = static_cast<int64_t>(plan.layers.size());
    const auto takes = [&](int64_t layer, int64_t from) {
        const LayerPlan& d = plan.layers[static_cast<std::size_t>(layer)];
        return d.input == from || (d.kind == Kind::sum && d.other == from);
    };
    const auto any = [&](int64_t first, int64_t end, int64_t from) {
        for (int64_t l = first; l < end; ++l)
            if (takes(l, from)) return true;
        return false;
    };
    std::vector<Links> links;
    for (int64_t l = 0; l < depth; ++l) {
        const LayerPlan& d = plan.layers[static_cast<std::size_t>(l)];
        links.push_back(
            {any(l + 1, depth, d.input), !any(0, l, d.input), any(l + 1, depth, d.other), !any(0, l, d.other)});
    }
    return links;
}

template <class T>
class PanelLayers {
public:
    PanelLayers(const Kernels<T>& kernels, const Plan& plan, const ParameterLayout& layout, int v)
        : k_(kernels), plan_(plan), layout_(layout), links_(links_of(plan)), v_(v), P_((v + 1) * kernels.lanes) {}

    const Links& links(std::size_t l) const { return links_[l]; }

    // So many leading columns of layer l's inputs come from X, past embeddings: nobody needs their errors, unless those
    // of X are asked for.
    ptrdiff_t untrained_inputs(std::size_t l) const {
        ptrdiff_t replaced = 0;
        int64_t from = plan_.layers[l].input;
        for (; from >= 0 && plan_.layers[static_cast<std::size_t>(from)].kind == Kind::embedding; ++replaced)
            from = plan_.layers[static_cast<std::size_t>(from)].input;
        return from < 0 ? plan_.n_in() - replaced : 0;
    }

    // Rows [r0, r1) of output panels [o0, o1), up to the activation. Row normalisation and embeddings need all panels,
    // column normalisation all rows.
    void forward(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t o0, ptrdiff_t o1,
                 ptrdiff_t r0, ptrdiff_t r1) const {
        const LayerPlan& d = plan_.layers[l];
        const T* in = input(ws, x, d.input);
        if (d.kind == Kind::embedding) return embed(ws, in, theta, l, r0, r1);
        if (d.kind == Kind::layer_norm) k_.normalize_rows[v_](row_norm(ws, in, l, r0, r1));
        for (ptrdiff_t o = o0; o < o1; ++o) {
            const ptrdiff_t at = (o * ws.rows + r0) * P_;
            if (d.kind == Kind::batch_norm) k_.normalize_columns[v_](column_norm(ws, in, l, o, r1));
            if (d.kind == Kind::sum)
                k_.add(in + at, input(ws, x, d.other) + at, ws.z[l] + at, (r1 - r0) * P_);
            else
                k_.affine[v_]({.rows = r1 - r0,
                               .in = scaled(ws, in, l) + at,
                               .gain = theta + layout_.layers[l].weights + o * P_,
                               .shift = d.has_shift() ? theta + layout_.layers[l].biases + o * P_ : nullptr,
                               .out = ws.z[l] + at,
                               .keep = false});
        }
    }

    // The gradients of the parameters of output panel o, from the errors of all rows.
    void parameter_gradients(const Workspace<T>& ws, const T* x, std::size_t l, ptrdiff_t o, ptrdiff_t rows,
                             T* gradient, bool keep) const {
        const LayerPlan& d = plan_.layers[l];
        const ptrdiff_t at = o * ws.rows * P_;
        T* shift = d.has_shift() ? gradient + layout_.layers[l].biases + o * P_ : nullptr;
        if (d.kind == Kind::embedding && o == 0) table_gradient(ws, input(ws, x, d.input), l, rows, gradient, keep);
        if (!d.has_gain()) return;
        T* gain = gradient + layout_.layers[l].weights + o * P_;
        k_.affine_sums[v_]({rows, scaled(ws, input(ws, x, d.input), l) + at, ws.errors[l + 1] + at, gain, shift, keep});
    }

    // Panel o of the errors below column normalisation, which needs its parameters' gradients.
    void column_errors(const Workspace<T>& ws, const T* theta, const T* gradient, std::size_t l, ptrdiff_t o,
                       ptrdiff_t rows) const {
        ColumnNorm<T> norm = column_norm(ws, nullptr, l, o, rows);
        const ptrdiff_t at = o * ws.rows * P_;
        norm.gain = theta + layout_.layers[l].weights + o * P_;
        norm.delta = ws.errors[l + 1] + at;
        norm.product_sum = gradient + layout_.layers[l].weights + o * P_;
        norm.delta_sum = gradient + layout_.layers[l].biases + o * P_;
        norm.below = below(ws, plan_.layers[l].input) + at;
        norm.keep = links_[l].keep;
        k_.normalize_columns_backward[v_](norm);
    }

    // Rows [r0, r1) of the errors below any other layer; those of X only where they are asked for.
    void row_errors(const Workspace<T>& ws, const T* theta, std::size_t l, ptrdiff_t r0, ptrdiff_t r1,
                    bool input_gradient) const {
        const LayerPlan& d = plan_.layers[l];
        const bool wanted = d.input >= 0 || input_gradient;
        if (d.kind == Kind::sum) {
            if (wanted) pass_on(ws, l, d.input, links_[l].keep, r0, r1);
            if (d.other >= 0 || input_gradient) pass_on(ws, l, d.other, links_[l].keep_other, r0, r1);
        } else if (wanted && d.kind == Kind::layer_norm) {
            RowNorm<T> norm = row_norm(ws, nullptr, l, r0, r1);
            norm.gain = theta + layout_.layers[l].weights;
            norm.delta = ws.errors[l + 1] + r0 * P_;
            norm.below = below(ws, d.input) + r0 * P_;
            norm.keep = links_[l].keep;
            k_.normalize_rows_backward[v_](norm);
        } else if (wanted && d.kind == Kind::scale) {
            for (ptrdiff_t o = 0; o < panels(d.n_out); ++o) {
                const ptrdiff_t at = (o * ws.rows + r0) * P_;
                k_.affine[v_]({r1 - r0, ws.errors[l + 1] + at, theta + layout_.layers[l].weights + o * P_, nullptr,
                               below(ws, d.input) + at, links_[l].keep});
            }
        } else if (wanted) {
            embedded_errors(ws, l, r0, r1, input_gradient ? 0 : untrained_inputs(l));
        }
    }

private:
    ptrdiff_t panels(ptrdiff_t width) const { return (width + P_ - 1) / P_; }

    static const T* input(const Workspace<T>& ws, const T* x, int64_t from) {
        return from < 0 ? x : ws.a[static_cast<std::size_t>(from)];
    }
    static T* below(const Workspace<T>& ws, int64_t from) { return ws.errors[static_cast<std::size_t>(from + 1)]; }

    // What a layer's gain multiplies.
    const T* scaled(const Workspace<T>& ws, const T* in, std::size_t l) const { return ws.hat[l] ? ws.hat[l] : in; }

    RowNorm<T> row_norm(const Workspace<T>& ws, const T* in, std::size_t l, ptrdiff_t r0, ptrdiff_t r1) const {
        RowNorm<T> norm{};
        norm.rows = r1 - r0;
        norm.columns = plan_.layers[l].n_out;
        norm.stride = ws.rows;
        norm.epsilon = static_cast<T>(plan_.layers[l].epsilon);
        norm.x = in ? in + r0 * P_ : nullptr;
        norm.hat = ws.hat[l] + r0 * P_;
        norm.inverse = ws.inverse[l] + r0;
        return norm;
    }

    ColumnNorm<T> column_norm(const Workspace<T>& ws, const T* in, std::size_t l, ptrdiff_t o, ptrdiff_t rows) const {
        ColumnNorm<T> norm{};
        norm.rows = rows;
        norm.epsilon = static_cast<T>(plan_.layers[l].epsilon);
        norm.x = in ? in + o * ws.rows * P_ : nullptr;
        norm.share = ws.share;
        norm.hat = ws.hat[l] + o * ws.rows * P_;
        norm.mean = ws.mean[l] + o * P_;
        norm.variance = ws.variance[l] + o * P_;
        norm.inverse = ws.inverse[l] + o * P_;
        return norm;
    }

    void pass_on(const Workspace<T>& ws, std::size_t l, int64_t to, bool keep, ptrdiff_t r0, ptrdiff_t r1) const {
        for (ptrdiff_t o = 0; o < panels(plan_.layers[l].n_out); ++o) {
            const ptrdiff_t at = (o * ws.rows + r0) * P_;
            T* sum = below(ws, to) + at;
            k_.add(ws.errors[l + 1] + at, keep ? sum : nullptr, sum, (r1 - r0) * P_);
        }
    }

    ptrdiff_t element(const Workspace<T>& ws, ptrdiff_t row, ptrdiff_t column) const {
        return (column / P_ * ws.rows + row) * P_ + column % P_;
    }

    // Categories were checked in Python; a slip must not read beyond the table.
    ptrdiff_t category(const Workspace<T>& ws, const T* in, const LayerPlan& d, ptrdiff_t row) const {
        const auto most = static_cast<T>(d.categories - 1);
        return static_cast<ptrdiff_t>(std::min(std::max(in[element(ws, row, d.column)], T(0)), most));
    }

    // The other columns in their order, then the vector of the row's category.
    void embed(const Workspace<T>& ws, const T* in, const T* theta, std::size_t l, ptrdiff_t r0, ptrdiff_t r1) const {
        const LayerPlan& d = plan_.layers[l];
        const ptrdiff_t size = d.weight_columns(), others = d.n_in - 1;
        for (ptrdiff_t r = r0; r < r1; ++r) {
            const T* vector = theta + layout_.layers[l].weights + category(ws, in, d, r) * size;
            copy_columns(ws, in, 0, ws.z[l], 0, r, d.column);
            copy_columns(ws, in, d.column + 1, ws.z[l], d.column, r, others - d.column);
            for (ptrdiff_t c = 0; c < size; ++c) ws.z[l][element(ws, r, others + c)] = vector[c];
        }
    }

    // n columns of row r, piece by piece of both panels.
    void copy_columns(const Workspace<T>& ws, const T* in, ptrdiff_t from, T* out, ptrdiff_t to, ptrdiff_t r,
                      ptrdiff_t n) const {
        while (n > 0) {
            const ptrdiff_t piece = std::min({n, P_ - from % P_, P_ - to % P_});
            std::copy_n(in + element(ws, r, from), piece, out + element(ws, r, to));
            from += piece;
            to += piece;
            n -= piece;
        }
    }

    void table_gradient(const Workspace<T>& ws, const T* in, std::size_t l, ptrdiff_t rows, T* gradient,
                        bool keep) const {
        const LayerPlan& d = plan_.layers[l];
        const ptrdiff_t size = d.weight_columns();
        T* table = gradient + layout_.layers[l].weights;
        if (!keep) std::fill(table, table + d.categories * size, T(0));
        for (ptrdiff_t r = 0; r < rows; ++r) {
            T* vector = table + category(ws, in, d, r) * size;
            for (ptrdiff_t c = 0; c < size; ++c) vector[c] += ws.errors[l + 1][element(ws, r, d.n_in - 1 + c)];
        }
    }

    // Of the columns from `first` on.
    void embedded_errors(const Workspace<T>& ws, std::size_t l, ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t first) const {
        const LayerPlan& d = plan_.layers[l];
        T* to = below(ws, d.input);
        for (ptrdiff_t r = r0; r < r1; ++r)
            for (ptrdiff_t c = first; c < d.n_in; ++c) {
                const T error = c == d.column ? T(0) : ws.errors[l + 1][element(ws, r, c - (c > d.column))];
                T& at = to[element(ws, r, c)];
                at = links_[l].keep ? at + error : error;
            }
    }

    const Kernels<T>& k_;
    const Plan& plan_;
    const ParameterLayout& layout_;
    const std::vector<Links> links_;
    const int v_;
    const ptrdiff_t P_;
};

}  // namespace gradstep
