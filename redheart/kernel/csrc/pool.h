// Threads that stay: a step of a large model makes hundreds of calls, and starting its threads anew took a good part of
// each. They sleep between calls, and are never joined, so that the end of a process need not wait for them.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

namespace redheart {

class Pool {
public:
    // Call `take` here and in up to `helpers` more threads, and return when all calls have.
    template <class Take>
    void run(std::ptrdiff_t helpers, const Take& take) {
        Job job{[](const void* work) { (*static_cast<const Take*>(work))(); }, &take, helpers};
        {
            const std::lock_guard lock(mutex_);
            start_until(helpers);
            jobs_.push_back(&job);
        }
        for (std::ptrdiff_t k = 0; k < helpers; ++k) wanted_.notify_one();
        take();
        std::unique_lock lock(mutex_);
        jobs_.remove(&job);  // who has not come by now finds nothing to do
        job.left.wait(lock, [&] { return job.running == 0; });
    }

private:
    struct Job {
        void (*call)(const void*);
        const void* work;
        std::ptrdiff_t wanted;
        std::ptrdiff_t running = 0;
        std::condition_variable left{};
    };

    void start_until(std::ptrdiff_t threads) {
        while (started_ < threads) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: those that run do the rest
            }
            ++started_;
        }
    }

    [[noreturn]] void serve() {
        std::unique_lock lock(mutex_);
        for (;;) {
            Job* job = nullptr;
            wanted_.wait(lock, [&] {
                for (Job* other : jobs_)
                    if (other->wanted > 0) return (job = other) != nullptr;
                return false;
            });
            --job->wanted, ++job->running;
            lock.unlock();
            job->call(job->work);
            lock.lock();
            if (--job->running == 0) job->left.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wanted_;
    std::list<Job*> jobs_;
    std::ptrdiff_t started_ = 0;
};

// The pool of this process. A fork has none of its parent's threads, and begins with a pool of its own.
inline Pool& pool() {
    static Pool* own = new Pool;
    static const int registered = pthread_atfork(nullptr, nullptr, [] { own = new Pool; });
    static_cast<void>(registered);
    return *own;
}

// Call `work(task, begin, size)` for [0, n) in tasks of `whole`, the last one shorter. Which thread takes which is
// open, so tasks must not share results.
template <class Work>
void run(std::ptrdiff_t n, std::ptrdiff_t whole, int num_threads, const Work& work) {
    const std::ptrdiff_t tasks = (n + whole - 1) / whole;
    std::atomic<std::ptrdiff_t> next{0};
    const auto take = [&] {
        for (std::ptrdiff_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
            work(task, task * whole, task + 1 < tasks ? whole : n - task * whole);
    };
    const std::ptrdiff_t helpers = (tasks < num_threads ? tasks : num_threads) - 1;
    if (helpers > 0)
        pool().run(helpers, take);
    else
        take();
}

}  // namespace redheart
