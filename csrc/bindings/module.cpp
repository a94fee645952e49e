// The Python module gradstep._core: converts arguments and results, and keeps Python's locks and signals in order.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "bindings/arrays.h"
#include "bindings/ready_arrays.h"
#include "engine/dispatch.h"
#include "engine/engine.h"
#include "engine/peak.h"
#include "engine/thread_choice.h"
#include "engine/threads.h"

namespace py = pybind11;

namespace {

using namespace gradstep;

// As memory: a list would make a Python float of every epoch.
py::bytes bytes_of(const std::vector<double>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double)};
}

// Sparse rows: starts (n + 1,), columns and values (stored,).
template <class T>
using CsrArrays = std::tuple<Matrix<int64_t>, Matrix<int32_t>, Matrix<T>>;

// Number of input (-1: the network's), of the other summand, and of an embedding column and categories.
using LayerLinks = std::tuple<int64_t, int64_t, int64_t, int64_t>;
// n_in, n_out, activation, dropout, factor of the learning rate, kind, links, epsilon, momentum
using LayerList =
    std::vector<std::tuple<int64_t, int64_t, std::string, double, double, std::string, LayerLinks, double, double>>;
using Options = std::map<std::string, double>;
using LossOptions = std::map<std::string, std::vector<double>>;

struct Option {
    const char* name;
    double Plan::*value;
};
constexpr Option kOptions[] = {
    {"momentum", &Plan::momentum},
    {"nesterov", &Plan::nesterov},
    {"beta1", &Plan::beta1},
    {"beta2", &Plan::beta2},
    {"epsilon", &Plan::epsilon},
    {"weight_decay", &Plan::weight_decay},
    {"epsilon_hat", &Plan::epsilon_hat},
    {"momentum_decay", &Plan::momentum_decay},
    {"decay", &Plan::beta2},
    {"l1", &Plan::l1},
    {"clip_value", &Plan::clip_value},
    {"clip_norm", &Plan::clip_norm},
    {"ema_decay", &Plan::ema_decay},
    {"ema_warmup", &Plan::ema_warmup},
    {"swa_start", &Plan::swa_start},
};
constexpr const char* kLossOptions[] = {"delta", "quantile", "floor", "label_smoothing",
                                        "gamma"};  // of different losses

template <int N>
void set_options(Plan& plan, const Option (&known)[N], const Options& given) {
    for (const auto& [name, value] : given) {
        const auto* at = std::find_if(known, known + N, [&name = name](const Option& o) { return name == o.name; });
        if (at == known + N)
            throw std::invalid_argument("the compiled backend does not know the option '" + name + "'");
        plan.*at->value = value;
    }
}

void set_loss_option(Plan& plan, const LossOptions& given) {
    const auto outputs = static_cast<std::size_t>(plan.n_out());
    plan.loss_option.assign(outputs, 0);
    for (const auto& [name, values] : given) {
        if (std::find(std::begin(kLossOptions), std::end(kLossOptions), name) == std::end(kLossOptions))
            throw std::invalid_argument("the compiled backend does not know the option '" + name + "'");
        if (values.size() != 1 && values.size() != outputs)
            throw std::invalid_argument("the option '" + name + "' must have one value, or one an output");
        for (std::size_t o = 0; o < outputs; ++o) plan.loss_option[o] = values[values.size() == 1 ? 0 : o];
    }
}

struct KindName {
    const char* name;
    Kind kind;
};
constexpr KindName kKinds[] = {
    {"dense", Kind::dense}, {"layer_norm", Kind::layer_norm}, {"batch_norm", Kind::batch_norm},
    {"sum", Kind::sum},     {"scale", Kind::scale},           {"embedding", Kind::embedding},
};

Kind kind_of(const std::string& name) {
    for (const KindName& known : kKinds)
        if (name == known.name) return known.kind;
    throw std::invalid_argument("the compiled backend does not know layers of kind '" + name + "'");
}

// Layers, and options by name, as in base.Plan.
Plan make_plan(const LayerList& layers, const std::string& loss, const LossOptions& loss_options,
               const std::string& optimizer, const Options& optimizer_options, double l2, bool l2_per_batch,
               uint64_t seed) {
    Plan plan;
    for (const auto& [n_in, n_out, activation, dropout, rate_factor, kind, links, epsilon, momentum] : layers) {
        const auto [input, other, column, categories] = links;
        plan.layers.push_back({n_in, n_out, activation, dropout, rate_factor, kind_of(kind), input, other, epsilon,
                               momentum, column, categories});
    }
    plan.seed = seed;
    plan.loss = loss;
    plan.optimizer = optimizer;
    plan.l2 = l2;
    plan.l2_per_batch = l2_per_batch;
    set_loss_option(plan, loss_options);
    set_options(plan, kOptions, optimizer_options);
    return plan;
}

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

// Runs pending Python signal handlers; keeps what one of them raised.
class Signals {
public:
    std::function<bool()> check() {
        return [this] {
            const py::gil_scoped_acquire gil;
            if (raised_ || PyErr_CheckSignals() == 0) return raised_.has_value();
            raised_.emplace();
            return true;
        };
    }

    void rethrow() const {
        if (raised_) throw *raised_;
    }

    // The exception, or None; also None for Ctrl-C's, which training answers by stopping.
    py::object unusual() const {
        if (!raised_ || raised_->matches(PyExc_KeyboardInterrupt)) return py::none();
        if (raised_->trace()) PyException_SetTraceback(raised_->value().ptr(), raised_->trace().ptr());
        return raised_->value();
    }

private:
    std::optional<py::error_already_set> raised_;
};

// What Python raised; anything else goes on its way.
py::object exception_of(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const py::error_already_set& raised) {
        if (raised.trace()) PyException_SetTraceback(raised.value().ptr(), raised.trace().ptr());
        return raised.value();
    }
}

// A custom loss: calls function(rows of the data, outputs), which gives the mean loss and its gradient.
template <class T>
double call_loss(void* function, const Batch<T>& batch, int64_t width, const T* outputs, T* gradient) {
    const py::gil_scoped_acquire gil;
    const std::vector<py::ssize_t> shape{batch.rows, width};
    py::array_t<int64_t> rows(batch.rows);
    int64_t* number = rows.mutable_data();
    for (int64_t r = 0; r < batch.rows; ++r) number[r] = batch.row(r);
    const py::object result = py::handle(static_cast<PyObject*>(function))(rows, py::array_t<T>(shape, outputs));
    const auto [loss, slopes] = result.cast<std::pair<double, Matrix<T>>>();
    require(slopes.ndim() == 2 && slopes.shape(0) == shape[0] && slopes.shape(1) == shape[1],
            "the gradient must be (rows, n_out)");
    std::copy_n(slopes.data(), slopes.size(), gradient);
    return loss;
}

// An engine, the lock that lets one Python thread at a time use it, and conversions. Values were validated in
// Python; types and shapes are checked again, because a slip would read beyond an array.
template <class T>
class PyEngine {
public:
    PyEngine(const LayerList& layers, const std::string& loss, const LossOptions& loss_options,
             const std::string& optimizer, const Options& optimizer_options, double l2, bool l2_per_batch,
             uint64_t seed)
        : engine_(make_plan(layers, loss, loss_options, optimizer, optimizer_options, l2, l2_per_batch, seed),
                  kernels()),
          embeds_(std::any_of(layers.begin(), layers.end(),
                              [](const auto& layer) { return std::get<5>(layer) == "embedding"; })) {}

    using Layers = std::vector<std::pair<Matrix<T>, Matrix<T>>>;

    Layers get(int what) {
        Layers layers = empty_layers();
        const std::vector<T*> W = weights_of(layers), b = biases_of(layers);
        const Busy busy(*this);
        for (std::size_t l = 0; l < W.size(); ++l) engine_.get(what, l, W[l], b[l]);
        return layers;
    }

    void set(int what, std::size_t layer, const std::optional<Matrix<T>>& W, const std::optional<Matrix<T>>& b) {
        const LayerPlan& d = engine_.plan().layers.at(layer);
        require(!W || (W->ndim() == 2 && W->shape(0) == d.weight_rows() && W->shape(1) == d.weight_columns()),
                "W must have the shape of the layer's weights, table or gain");
        require(!b || (b->ndim() == 1 && b->shape(0) == d.biases()),
                "b must have the shape of the layer's biases or shift");
        const T* weights = W ? W->data() : nullptr;
        const T* biases = b ? b->data() : nullptr;
        const Busy busy(*this);
        engine_.set(what, layer, weights, biases);
    }

    void set_input_transform(const std::optional<Matrix<T>>& shift, const std::optional<Matrix<T>>& scale) {
        for (const auto& array : {shift, scale})
            require(!array || (array->ndim() == 1 && array->shape(0) == engine_.plan().n_in()),
                    "shift and scale must be (n_in,)");
        require(shift.has_value() == scale.has_value(), "shift and scale must both be given, or none");
        const T* first = shift ? shift->data() : nullptr;
        const T* second = scale ? scale->data() : nullptr;
        const Busy busy(*this);
        engine_.set_input_transform(first, second);
    }

    double predict(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight,
                   std::optional<Matrix<T>>& out) {
        const Data<T> data = data_of(X, y, weight);
        require(!out || (out->ndim() == 2 && out->shape(0) == data.n && out->shape(1) == engine_.plan().n_out()),
                "out must be (n, n_out)");
        return run_predict(data, out ? out->mutable_data() : nullptr);
    }

    // The outputs, or None where Python has to check or convert X.
    py::object try_predict(const py::handle& X) {
        const auto rows = ready_rows<T>(X, engine_.plan().n_in());
        if (!rows || embeds_ || !all_finite(*rows)) return py::none();
        const Data<T> data = data_of(*rows, py::none(), std::nullopt);
        Matrix<T> out(std::vector<py::ssize_t>{data.n, engine_.plan().n_out()});
        run_predict(data, out.mutable_data());
        return out;
    }

    template <class Rows>
    py::tuple loss_and_gradients(const Rows& X, const py::object& y, const std::optional<Matrix<T>>& weight,
                                 bool input_gradient) {
        const Data<T> data = data_of(X, y, weight);
        Layers layers = empty_layers();
        const std::vector<T*> W = weights_of(layers), b = biases_of(layers);
        std::optional<Matrix<T>> dx;
        require(!input_gradient || data.x, "sparse rows have no input gradient");
        if (input_gradient) dx.emplace(std::vector<py::ssize_t>{data.n, engine_.plan().n_in()});
        T* to = dx ? dx->mutable_data() : nullptr;
        double loss = 0;
        {
            const Busy busy(*this);
            loss = engine_.loss_and_gradients(data, W, b, to);
        }
        return py::make_tuple(loss, layers, dx);
    }

    template <class Rows>
    double step(const Rows& X, const py::object& y, const std::optional<Matrix<T>>& weight, double learning_rate) {
        const Data<T> data = data_of(X, y, weight);
        const Busy busy(*this);
        return engine_.step(data, learning_rate);
    }

    // The loss, or None where Python has to check or convert X or y; nothing has changed then.
    py::object try_step(const py::handle& X, const py::object& y, double learning_rate) {
        const auto rows = ready_rows<T>(X, engine_.plan().n_in());
        if (!rows || embeds_ || !are_ready_targets(y, rows->shape(0)) || !all_finite(*rows)) return py::none();
        return py::float_(step(*rows, y, std::nullopt, learning_rate));
    }

    template <class Rows>
    py::tuple train(const Rows& X, const py::object& y, const std::optional<Matrix<T>>& weight, int64_t epochs,
                    int64_t batch_size, const Matrix<double>& learning_rates, uint64_t seed, uint32_t first_epoch,
                    bool shuffle, const std::optional<Matrix<int64_t>>& order) {
        const Data<T> data = data_of(X, y, weight);
        TrainOptions options = options_of(epochs, batch_size, learning_rates, seed, first_epoch, shuffle);
        if (order) set_order(options, *order, data.n);
        const int64_t rows = order ? options.order_rows : data.n;
        require(options.rates == 1 || options.rates == (rows + batch_size - 1) / batch_size,
                "learning_rates must have one for each batch");
        Signals signals;
        TrainResult result;
        {
            const Busy busy(*this);
            result = engine_.train(data, options, signals.check());
        }
        const py::bytes losses = bytes_of(result.losses);
        // A signal since the engine last looked would raise as soon as this returns, and the result be lost.
        result.interrupted = signals.check()() || result.interrupted;
        const py::object raised = result.raised ? exception_of(result.raised) : signals.unusual();
        return py::make_tuple(losses, result.interrupted || result.raised, result.diverged, result.restored, raised);
    }

    bool takes_sparse() const { return engine_.takes_sparse(); }

    int64_t step_count() {
        const Busy busy(*this);
        return engine_.step_count();
    }

    void set_step_count(int64_t step) {
        const Busy busy(*this);
        engine_.set_step_count(step);
    }

    // Trains as `train` does and returns the shares of its threads' time by phase.
    std::map<std::string, double> profile_train(const Matrix<T>& X, const py::object& y, int64_t epochs,
                                                int64_t batch_size, const Matrix<double>& learning_rates) {
        const Data<T> data = data_of(X, y, std::nullopt);
        const TrainOptions options = options_of(epochs, batch_size, learning_rates, 0, 0, true);
        Signals signals;
        std::array<double, kPhases> shares{};
        {
            const Busy busy(*this);
            engine_.start_profile(num_threads());
            const TrainResult result = engine_.train(data, options, signals.check());
            if (result.raised) std::rethrow_exception(result.raised);
            shares = engine_.profile();
            engine_.start_profile(0);
        }
        signals.rethrow();
        std::map<std::string, double> by_name;
        for (std::size_t p = 0; p < shares.size(); ++p) by_name[kPhaseNames[p]] = shares[p];
        return by_name;
    }

    std::vector<std::string> state_names() const {
        std::vector<std::string> names;
        for (int s = 0; s < engine_.optimizer().states; ++s) names.emplace_back(engine_.optimizer().state_names[s]);
        if (engine_.plan().averages()) names.emplace_back("trained");
        return names;
    }

private:
    // The engine's lock, with the GIL released first: waiting for another thread's call must not block that
    // thread.
    class Busy {
    public:
        explicit Busy(PyEngine& engine) : engine_(engine), mutex_(engine.mutex()), lock_(mutex_) {
            engine_.owner_ = std::this_thread::get_id();
        }
        ~Busy() { engine_.owner_ = std::thread::id(); }
        Busy(const Busy&) = delete;
        Busy& operator=(const Busy&) = delete;

    private:
        PyEngine& engine_;
        std::mutex& mutex_;
        py::gil_scoped_release gil_;
        std::lock_guard<std::mutex> lock_;
    };

    // Without the GIL; raises what a signal handler raised.
    double run_predict(const Data<T>& data, T* out) {
        Signals signals;
        double loss = 0;
        {
            const Busy busy(*this);
            loss = engine_.predict(data, out, signals.check());
        }
        signals.rethrow();
        return loss;
    }

    bool are_ready_targets(const py::handle& y, py::ssize_t n) const {
        if (engine_.plan().custom_loss()) return false;
        if (engine_.takes_labels()) return are_ready_labels(y, n, engine_.plan().n_out());
        const auto targets = ready_rows<T>(y, engine_.targets());
        return targets && targets->shape(0) == n && all_finite(*targets);
    }

    // The lock, unless this thread holds it already: a signal handler runs in the middle of a call. In a forked
    // child it may have been taken by a thread that does not exist there; the child gets a new one.
    std::mutex& mutex() {
        if (generation_ != fork_generation()) {
            static_cast<void>(mutex_.release());
            mutex_ = std::make_unique<std::mutex>();
            owner_ = std::thread::id();
            generation_ = fork_generation();
        }
        if (owner_ == std::this_thread::get_id())
            throw std::runtime_error(
                "this network is at work: a signal handler or a loss cannot use it before that call returns");
        return *mutex_;
    }

    static TrainOptions options_of(int64_t epochs, int64_t batch_size, const Matrix<double>& learning_rates,
                                   uint64_t seed, uint32_t first_epoch, bool shuffle) {
        require(batch_size > 0, "batch_size must be positive");
        require(learning_rates.ndim() >= 1 && learning_rates.ndim() <= 2 && learning_rates.shape(0) == epochs,
                "learning_rates must be (epochs,) or (epochs, steps)");
        const int64_t rates = learning_rates.ndim() == 2 ? learning_rates.shape(1) : 1;
        return {epochs, batch_size, learning_rates.data(), rates, seed, first_epoch, shuffle};
    }

    static void set_order(TrainOptions& options, const Matrix<int64_t>& order, int64_t n) {
        require(order.ndim() == 1 && order.shape(0) > 0, "order must be (rows,), rows > 0");
        options.order = order.data();
        options.order_rows = order.shape(0);
        require(std::all_of(options.order, options.order + options.order_rows,
                            [n](int64_t row) { return row >= 0 && row < n; }),
                "order must hold numbers of rows");
    }

    Layers empty_layers() const {
        Layers layers;
        for (const LayerPlan& d : engine_.plan().layers)
            layers.emplace_back(Matrix<T>(std::vector<py::ssize_t>{d.weight_rows(), d.weight_columns()}),
                                Matrix<T>(std::vector<py::ssize_t>{d.biases()}));
        return layers;
    }

    static std::vector<T*> weights_of(Layers& layers) {
        std::vector<T*> pointers;
        for (auto& [W, b] : layers) pointers.push_back(W.mutable_data());
        return pointers;
    }

    static std::vector<T*> biases_of(Layers& layers) {
        std::vector<T*> pointers;
        for (auto& [W, b] : layers) pointers.push_back(b.mutable_data());
        return pointers;
    }

    Data<T> data_of(const Matrix<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight) const {
        Data<T> data;
        require(X.ndim() == 2 && X.shape(0) > 0 && X.shape(1) == engine_.plan().n_in(), "X must be (n, n_in), n > 0");
        data.x = X.data();
        data.n = X.shape(0);
        set_targets(data, y, weight);
        return data;
    }

    Data<T> data_of(const CsrArrays<T>& X, const py::object& y, const std::optional<Matrix<T>>& weight) const {
        const auto& [starts, columns, values] = X;
        require(engine_.takes_sparse(), "this network does not take sparse rows");
        require(starts.ndim() == 1 && columns.ndim() == 1 && values.ndim() == 1, "CSR arrays must have one dimension");
        Data<T> data;
        data.sparse = {starts.data(), columns.data(), values.data()};
        data.n = starts.shape(0) - 1;
        require(data.n > 0 && starts.data()[0] == 0 && starts.data()[data.n] == values.shape(0) &&
                    columns.shape(0) == values.shape(0) && std::is_sorted(starts.data(), starts.data() + data.n + 1),
                "starts must rise from 0 to the number of values");
        const auto n_in = static_cast<int32_t>(engine_.plan().n_in());
        require(std::all_of(columns.data(), columns.data() + columns.shape(0),
                            [n_in](int32_t column) { return column >= 0 && column < n_in; }),
                "columns must be 0 to n_in - 1");
        set_targets(data, y, weight);
        return data;
    }

    void set_targets(Data<T>& data, const py::object& y, const std::optional<Matrix<T>>& weight) const {
        require(!weight || (weight->ndim() == 1 && weight->shape(0) == data.n), "weight must be (n,)");
        data.weight = weight ? weight->data() : nullptr;
        if (y.is_none()) return;
        if (engine_.takes_labels()) {
            require(py::isinstance<Matrix<int32_t>>(y), "y must be int32 and C-contiguous");
            const auto labels = py::reinterpret_borrow<Matrix<int32_t>>(y);
            require(labels.ndim() == 1 && labels.shape(0) == data.n, "y must be (n,)");
            data.labels = labels.data();
        } else if (engine_.plan().custom_loss()) {
            require(PyCallable_Check(y.ptr()), "y must be a function of row numbers and outputs");
            data.custom = {&call_loss<T>, y.ptr()};
        } else {
            require(py::isinstance<Matrix<T>>(y), "y must have the engine's dtype and be C-contiguous");
            const auto targets = py::reinterpret_borrow<Matrix<T>>(y);
            require(targets.ndim() == 2 && targets.shape(0) == data.n && targets.shape(1) == engine_.targets(),
                    "y must be (n, targets)");
            data.y = targets.data();
        }
    }

    Engine<T> engine_;
    const bool embeds_;  // categories, which only Python checks
    std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();
    std::atomic<std::thread::id> owner_{};
    int generation_ = fork_generation();
};

// What takes dense rows, or sparse ones.
template <class T, class Rows>
void def_training(py::class_<PyEngine<T>>& engine) {
    using E = PyEngine<T>;
    using namespace py::literals;
    const auto exact = [](const char* argument) { return py::arg(argument).noconvert(); };
    engine
        .def("loss_and_gradients", &E::template loss_and_gradients<Rows>, exact("X"), "y"_a, exact("weight"),
             "input_gradient"_a)
        .def("step", &E::template step<Rows>, exact("X"), "y"_a, exact("weight"), "learning_rate"_a)
        .def("train", &E::template train<Rows>, exact("X"), "y"_a, exact("weight"), "epochs"_a, "batch_size"_a,
             exact("learning_rates"), "seed"_a, "first_epoch"_a, "shuffle"_a, exact("order"));
}

template <class T>
void register_engine(py::module_& m, const char* name) {
    using E = PyEngine<T>;
    using namespace py::literals;
    const auto exact = [](const char* argument) { return py::arg(argument).noconvert(); };
    py::class_<E> engine(m, name);
    def_training<T, Matrix<T>>(engine);
    def_training<T, CsrArrays<T>>(engine);
    engine
        .def(py::init<const LayerList&, const std::string&, const LossOptions&, const std::string&, const Options&,
                      double, bool, uint64_t>(),
             "layers"_a, "loss"_a, "loss_options"_a, "optimizer"_a, "optimizer_options"_a, "l2"_a, "l2_per_batch"_a,
             "seed"_a)
        .def("get", &E::get, "what"_a)
        .def("set", &E::set, "what"_a, "layer"_a, exact("W"), exact("b"))
        .def("set_input_transform", &E::set_input_transform, exact("shift"), exact("scale"))
        .def("predict", &E::predict, exact("X"), "y"_a, exact("weight"), exact("out"))
        .def("try_predict", &E::try_predict, "X"_a)
        .def("try_step", &E::try_step, "X"_a, "y"_a, "learning_rate"_a)
        .def_property_readonly("takes_sparse", &E::takes_sparse)
        .def("profile_train", &E::profile_train, exact("X"), "y"_a, "epochs"_a, "batch_size"_a, exact("learning_rates"))
        .def_property("step_count", &E::step_count, &E::set_step_count)
        .def_property_readonly("state_names", &E::state_names);
}

template <class Entry>
std::vector<std::string> names(const Entry* entries, int n) {
    std::vector<std::string> list;
    for (int i = 0; i < n; ++i) list.emplace_back(entries[i].name);
    return list;
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
#if defined(__clang__)
    m.attr("compiler") = "Clang " __clang_version__;
#else
    m.attr("compiler") = "GCC " __VERSION__;
#endif
    m.attr("activations") = names(kernels().f32.activations, kernels().f32.n_activations);
    m.attr("losses") = names(kernels().f32.losses, kernels().f32.n_losses);
    m.attr("optimizers") = names(kernels().f32.optimizers, kernels().f32.n_optimizers);
    m.def("num_threads", &num_threads);
    m.def("default_num_threads", &default_num_threads);
    m.def("set_num_threads", &set_num_threads, "n"_a, "0 restores the default.");
    // For the tests: beside a clock that only they move on.
    static int64_t test_clock = 0;
    py::class_<ThreadChoice>(m, "ThreadChoice")
        .def(py::init([] { return ThreadChoice([] { return test_clock; }); }))
        .def("begin_step", &ThreadChoice::begin_step, "operations"_a, "threads"_a)
        .def(
            "end_step",
            [](ThreadChoice& choice, int64_t time) {
                test_clock += time;
                choice.end_step();
            },
            "time"_a);
    m.def("fma_peak", &fma_peak, py::call_guard<py::gil_scoped_release>(), "threads"_a, "seconds"_a = 0.25,
          "isa"_a = py::none(), "float64"_a = false, "Measured peak of fused multiply-adds, GFLOP/s.");
    m.def("permutation", &permutation, "n"_a, "seed"_a, "epoch"_a);
}
