// A compiled plan with its parameters and optimizer state: what the bindings hold.
#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/chunked.h"
#include "engine/folding.h"
#include "engine/inference.h"
#include "engine/interrupts.h"
#include "engine/layered.h"
#include "engine/network_update.h"
#include "engine/optimizer_state.h"
#include "engine/profile.h"
#include "engine/random.h"
#include "engine/rowwise.h"
#include "engine/running_statistics.h"
#include "engine/thread_choice.h"
#include "engine/update.h"

namespace gradstep {

struct TrainOptions {
    int64_t epochs, batch_size;
    const double* learning_rates;  // (epochs, rates)
    int64_t rates;                 // 1, or one for each batch
    uint64_t seed;
    uint32_t first_epoch;
    bool shuffle;
    // The rows that every epoch visits, in this order; null: all rows, shuffled or not.
    const int64_t* order = nullptr;
    int64_t order_rows = 0;
};

struct TrainResult {
    std::vector<double> losses;  // of the completed epochs
    std::exception_ptr raised;   // by a custom loss: training stopped before that update
    bool interrupted = false, diverged = false;
    bool restored = true;  // after divergence: to the last good epoch; else parameters are the last finite ones
};

template <class T>
class Engine {
public:
    Engine(const Plan& plan, const KernelTable& table);

    const Plan& plan() const { return plan_; }
    const Optimizer<T>& optimizer() const { return update_.optimizer; }
    // Arrays beside the parameters: the optimizer's states, and the parameters that training moves if those are an
    // average.
    int states() const { return optimizer().states + (plan_.averages() ? 1 : 0); }

    // Natural shapes: W (n_in, n_out), b (n_out,). what: -1 the parameters, -2 mean and variance of layers that have
    // statistics, -3 those that training moves if -2 are their average, else one of the states.
    void get(int what, std::size_t layer, T* W, T* b) const;
    void set(int what, std::size_t layer, const T* W, const T* b);  // null: stays as it is
    int64_t step_count() const { return count_.value(); }
    void set_step_count(int64_t step) {
        checked_ = false;
        count_.set(step);
    }
    void set_input_transform(const T* shift, const T* scale);  // (n_in,) each, or null

    // Whether train, step and loss_and_gradients take sparse rows: where they are worth a way of their own.
    bool takes_sparse() const { return panel_step_ != nullptr && is_chain_; }
    bool takes_labels() const { return net_->loss().takes_labels; }
    int64_t targets() const { return net_->targets(); }

    // Linked outputs into out if not null; the mean loss if data has targets. Ends early when should_stop says so.
    double predict(Data<T> data, T* out, const std::function<bool()>& should_stop);
    // W[l] and b[l] per layer; dx (n, n_in) or null.
    double loss_and_gradients(Data<T> data, const std::vector<T*>& W, const std::vector<T*>& b, T* dx);
    // should_stop is asked about every 20 ms, between batches.
    TrainResult train(Data<T> data, const TrainOptions& options, const std::function<bool()>& should_stop);
    double step(Data<T> data, double learning_rate);

    // Training on that many threads is measured from here; 0: no more.
    void start_profile(int threads) { profile_.start(threads); }
    // Shares of the threads' time by phase, since then.
    std::array<double, kPhases> profile() const { return profile_.shares(); }

private:
    struct Scales {
        double weight_sum, loss;  // loss: 1 / (weight sum * outputs), 0 without weight; 1 of a custom loss
        double l2;
    };
    void transform(Data<T>& data) const;
    Data<T> part_of(const Data<T>& data, int64_t first, int64_t rows) const;
    double mean_loss(const Data<T>& data, double sum) const;
    Scales scales(const Batch<T>& b) const;
    void prepare(int64_t rows, int threads, bool sparse);
    double step_batch(const Batch<T>& b, const Scales& s, double learning_rate, int threads);
    double timed_step(const Batch<T>& b, const Scales& s, double learning_rate, int threads);
    void begin_update(const Scales& s, double learning_rate);
    double undo_update();
    bool backward_fused(int64_t rows, int threads);
    double accumulate_passes(const Batch<T>& b, T scale, int threads, const DropStep& drop, T* dx);
    DropStep drop_step() const { return {drops_, static_cast<uint32_t>(count_.value()), 0}; }
    bool statistics_are_finite() const;
    void move_statistics(const Batch<T>& b);
    // Parameters or statistics are about to change.
    void forget_checks() {
        checked_ = false;
        if (folded_) folded_->forget();
    }
    void exchange_average();
    class Exchanged;  // what training moves is in the place of what the user sees while it lives
    void average_epoch(int64_t epoch);
    bool remember(bool after_guarded_steps);
    void restore();
    double run_epoch(const Data<T>& data, const TrainOptions& options, int64_t epoch, int threads,
                     Interrupts& interrupts, bool& finished);
    bool run_epochs(const Data<T>& data, const TrainOptions& options, int64_t interval, int threads,
                    Interrupts& interrupts, TrainResult& result);
    T* gradient_in_memory();

    const Plan plan_;
    const bool drops_, clips_, is_chain_;
    const int64_t operations_per_row_;  // of a step
    const Kernels<T>& k_;
    std::unique_ptr<Net<T>> net_;
    Update<T> update_;
    Profile profile_;
    NetworkUpdate<T> network_update_;
    StepCount count_;
    RunningStatistics<T> statistics_;
    std::unique_ptr<Folded<T>> folded_;  // where predictions have parameters of their own
    std::size_t state_size_ = 0;         // parameters, states and statistics, which lie together
    Arena arena_, transform_arena_, gradient_arena_;
    T* remembered_ = nullptr;  // the checkpoint: parameters and states when they were last known to be good
    int64_t remembered_step_ = 0, remembered_epochs_ = 0;
    T* shift_ = nullptr;
    T* scale_ = nullptr;
    T* gradient_ = nullptr;
    std::unique_ptr<ChunkedGradient<T>> chunked_;
    std::unique_ptr<PanelStep<T>> panel_step_;
    Inference<T> inference_;
    bool checked_ = false;  // parameters and states are finite, and in the checkpoint if there is one
    bool guarded_ = false;  // no checkpoint to go back to: updates that would overflow are left out
    ThreadChoice thread_choice_;
    Permutation permutation_;
    std::vector<int64_t> order_;
};

}  // namespace gradstep
