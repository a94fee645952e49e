// The Python module gradstep._core: converts arguments, releases the GIL, and nothing else. Arguments were
// validated in Python.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <mutex>
#include <optional>

#include "engine/dispatch.h"
#include "engine/engine.h"
#include "engine/threads.h"

namespace py = pybind11;

namespace {

using namespace gradstep;

template <class T>
using Matrix = py::array_t<T, py::array::c_style>;

// Layers as (n_in, n_out, activation); options by name, as in base.Plan.
Plan make_plan(const std::vector<std::tuple<int64_t, int64_t, std::string>>& layers, const std::string& loss,
               double loss_option, const std::string& optimizer, const std::map<std::string, double>& options,
               double l2) {
    Plan plan;
    for (const auto& [n_in, n_out, activation] : layers) plan.layers.push_back({n_in, n_out, activation});
    const auto option = [&](const char* name) {
        const auto at = options.find(name);
        return at == options.end() ? 0.0 : at->second;
    };
    plan.loss = loss;
    plan.loss_option = loss_option;
    plan.optimizer = optimizer;
    plan.momentum = option("momentum");
    plan.nesterov = option("nesterov");
    plan.beta1 = option("beta1");
    plan.beta2 = option("beta2");
    plan.epsilon = option("epsilon");
    plan.weight_decay = option("weight_decay");
    plan.l2 = l2;
    return plan;
}

// An engine, the lock that keeps two Python threads from using it at once, and conversions.
template <class T>
class PyEngine {
public:
    PyEngine(const std::vector<std::tuple<int64_t, int64_t, std::string>>& layers, const std::string& loss,
             double loss_option, const std::string& optimizer, const std::map<std::string, double>& options, double l2)
        : engine_(make_plan(layers, loss, loss_option, optimizer, options, l2), kernels()) {}

    using Layers = std::vector<std::pair<Matrix<T>, Matrix<T>>>;

    Layers get(int what) {
        Layers layers = empty_layers();
        for (std::size_t l = 0; l < layers.size(); ++l)
            engine_.get(what, l, layers[l].first.mutable_data(), layers[l].second.mutable_data());
        return layers;
    }

    void set(int what, std::size_t layer, const Matrix<T>& W, const Matrix<T>& b) {
        engine_.set(what, layer, W.data(), b.data());
    }

    void set_input_transform(const std::optional<Matrix<T>>& shift, const std::optional<Matrix<T>>& scale) {
        engine_.set_input_transform(shift ? shift->data() : nullptr, scale ? scale->data() : nullptr);
    }

    double predict(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight,
                   std::optional<Matrix<T>>& out) {
        const Data<T> data = data_of(X, y, weight);
        T* to = out ? out->mutable_data() : nullptr;
        const Busy busy(*this);
        return engine_.predict(data, to);
    }

    py::tuple loss_and_gradients(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight,
                                 bool input_gradient) {
        const Data<T> data = data_of(X, y, weight);
        Layers layers = empty_layers();
        std::vector<T*> W, b;
        for (auto& [weights, biases] : layers) {
            W.push_back(weights.mutable_data());
            b.push_back(biases.mutable_data());
        }
        std::optional<Matrix<T>> dx;
        if (input_gradient) dx.emplace(std::vector<py::ssize_t>{X.shape(0), X.shape(1)});
        T* to = dx ? dx->mutable_data() : nullptr;
        double loss = 0;
        {
            const Busy busy(*this);
            loss = engine_.loss_and_gradients(data, W, b, to);
        }
        return py::make_tuple(loss, layers, dx);
    }

    double step(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight, double learning_rate) {
        const Data<T> data = data_of(X, y, weight);
        const Busy busy(*this);
        return engine_.step(data, learning_rate);
    }

    py::tuple train(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight, int64_t epochs,
                    int64_t batch_size, const Matrix<double>& learning_rates, uint64_t seed, uint32_t first_epoch,
                    bool shuffle) {
        const Data<T> data = data_of(X, y, weight);
        const TrainOptions options{epochs, batch_size, learning_rates.data(), seed, first_epoch, shuffle};
        std::optional<py::error_already_set> raised;
        const auto should_stop = [&raised] {
            const py::gil_scoped_acquire gil;
            if (PyErr_CheckSignals() == 0) return false;
            raised.emplace();
            return true;
        };
        TrainResult result;
        {
            const Busy busy(*this);
            result = engine_.train(data, options, should_stop);
        }
        if (raised && !raised->matches(PyExc_KeyboardInterrupt)) throw *raised;
        const py::array_t<double> losses(static_cast<py::ssize_t>(result.losses.size()), result.losses.data());
        return py::make_tuple(losses, result.interrupted, result.diverged);
    }

    int64_t step_count() const { return engine_.step_count(); }
    void set_step_count(int64_t step) { engine_.set_step_count(step); }

    std::vector<std::string> state_names() const {
        std::vector<std::string> names;
        for (int s = 0; s < engine_.optimizer().states; ++s) names.emplace_back(engine_.optimizer().state_names[s]);
        return names;
    }

private:
    // Releases the GIL first, so that waiting for another thread's call cannot block that thread.
    struct Busy {
        explicit Busy(PyEngine& engine) : lock(engine.mutex_) {}
        py::gil_scoped_release gil;
        std::lock_guard<std::mutex> lock;
    };

    Layers empty_layers() const {
        Layers layers;
        for (const DensePlan& d : engine_.plan().layers)
            layers.emplace_back(Matrix<T>(std::vector<py::ssize_t>{d.n_in, d.n_out}),
                                Matrix<T>(std::vector<py::ssize_t>{d.n_out}));
        return layers;
    }

    static Data<T> data_of(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight) {
        Data<T> data;
        data.x = X.data();
        data.n = X.shape(0);
        if (py::isinstance<Matrix<int32_t>>(y))
            data.labels = py::reinterpret_borrow<Matrix<int32_t>>(y).data();
        else if (!y.is_none())
            data.y = py::reinterpret_borrow<Matrix<T>>(y).data();
        data.weight = weight ? weight->data() : nullptr;
        return data;
    }

    Engine<T> engine_;
    std::mutex mutex_;
};

template <class T>
void register_engine(py::module_& m, const char* name) {
    using E = PyEngine<T>;
    using namespace py::literals;
    const auto exact = [](const char* argument) { return py::arg(argument).noconvert(); };
    py::class_<E>(m, name)
        .def(py::init<const std::vector<std::tuple<int64_t, int64_t, std::string>>&, const std::string&, double,
                      const std::string&, const std::map<std::string, double>&, double>(),
             "layers"_a, "loss"_a, "loss_option"_a, "optimizer"_a, "optimizer_options"_a, "l2"_a)
        .def("get", &E::get, "what"_a)
        .def("set", &E::set, "what"_a, "layer"_a, exact("W"), exact("b"))
        .def("set_input_transform", &E::set_input_transform, exact("shift"), exact("scale"))
        .def("predict", &E::predict, exact("X"), "y"_a, exact("weight"), exact("out"))
        .def("loss_and_gradients", &E::loss_and_gradients, exact("X"), "y"_a, exact("weight"), "input_gradient"_a)
        .def("step", &E::step, exact("X"), "y"_a, exact("weight"), "learning_rate"_a)
        .def("train", &E::train, exact("X"), "y"_a, exact("weight"), "epochs"_a, "batch_size"_a,
             exact("learning_rates"), "seed"_a, "first_epoch"_a, "shuffle"_a)
        .def_property("step_count", &E::step_count, &E::set_step_count)
        .def_property_readonly("state_names", &E::state_names);
}

template <class Entry>
std::vector<std::string> names(const Entry* entries, int n) {
    std::vector<std::string> list;
    for (int i = 0; i < n; ++i) list.emplace_back(entries[i].name);
    return list;
}

// Floating-point operations a second, in units of 1e9, of independent multiply-adds in registers.
double fma_peak(int threads, double seconds, const std::optional<std::string>& isa, bool float64) {
    const KernelTable& table = isa ? kernels(*isa) : kernels();
    const auto run = [&](int64_t repeats) {
        return float64 ? table.f64.fma_peak(repeats) : table.f32.fma_peak(repeats);
    };
    using Clock = std::chrono::steady_clock;
    const auto timed = [&](int64_t repeats) {
        const auto start = Clock::now();
        double operations = 0;
        std::mutex mutex;
        parallel_for(threads, threads, [&](int, int) {
            const double done = run(repeats);
            const std::lock_guard<std::mutex> lock(mutex);
            operations += done;
        });
        const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
        return std::pair(operations, elapsed);
    };
    const py::gil_scoped_release gil;
    constexpr int64_t probe = 200'000;
    const auto [_, probe_seconds] = timed(probe);
    double best = 0;
    for (int round = 0; round < 5; ++round) {
        const auto [operations, elapsed] =
            timed(std::max<int64_t>(1, static_cast<int64_t>(probe * seconds / 5 / probe_seconds)));
        best = std::max(best, operations / elapsed);
    }
    return best / 1e9;
}

py::array_t<int64_t> permutation(int64_t n, uint64_t seed, uint32_t epoch) {
    py::array_t<int64_t> order(n);
    Permutation().fill(seed, epoch, n, order.mutable_data());
    return order;
}

}  // namespace

// For threadpoolctl, which finds libraries by their symbols.
extern "C" __attribute__((visibility("default"))) int gradstep_num_threads() {
    return gradstep::num_threads();
}
extern "C" __attribute__((visibility("default"))) void gradstep_set_num_threads(int n) {
    gradstep::set_num_threads(n);
}

PYBIND11_MODULE(_core, m) {
    using namespace py::literals;
    m.doc() = "Compiled engine of gradstep";
    register_engine<float>(m, "EngineFloat32");
    register_engine<double>(m, "EngineFloat64");
    m.attr("isa") = kernels().isa;
    m.attr("instruction_sets") = instruction_sets();
    m.attr("activations") = names(kernels().f32.activations, kernels().f32.n_activations);
    m.attr("losses") = names(kernels().f32.losses, kernels().f32.n_losses);
    m.attr("optimizers") = names(kernels().f32.optimizers, kernels().f32.n_optimizers);
    m.def("num_threads", &num_threads);
    m.def("default_num_threads", &default_num_threads);
    m.def("set_num_threads", &set_num_threads, "n"_a, "0 restores the default.");
    m.def("fma_peak", &fma_peak, "threads"_a, "seconds"_a = 0.25, "isa"_a = py::none(), "float64"_a = false,
          "Measured peak of fused multiply-adds, GFLOP/s.");
    m.def("permutation", &permutation, "n"_a, "seed"_a, "epoch"_a);
}
