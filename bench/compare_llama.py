#!/usr/bin/env python3
"""Tandem beside llama.cpp, interleaved in one run: decode and prefill (llama-bench), serving (llama-server), perplexity with int8
activations against fp32. Prints the machine, every command's best and median, ratios pair by pair, and the CPU that others used.

    bench/compare_llama.py --llama DIR_OF_LLAMA_BINARIES --tandem build/cpu/tandem MODEL.gguf [--threads 1,2] [--repeat 5] [--serve]
"""
import argparse, json, os, re, statistics, subprocess, threading, time, urllib.request


def cpu_busy():
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:4]]
    return sum(fields) / os.sysconf("SC_CLK_TCK")


def run(command):
    """Output and the cores that others used meanwhile."""
    before, started, own = cpu_busy(), time.time(), os.times()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    end = os.times()
    mine = (end.children_user - own.children_user) + (end.children_system - own.children_system)
    return result.stdout, max(0.0, (cpu_busy() - before - mine) / (time.time() - started))


def llama_bench(args, threads):
    out, others = run([f"{args.llama}/llama-bench", "-m", args.model, "-p", "512", "-n", "128", "-t", str(threads), "-r", "1", "-o", "json"])
    rows = json.loads(out)
    return {("prefill" if row["n_prompt"] else "decode"): row["avg_ts"] for row in rows}, others


def tandem_bench(args, threads, compute):
    out, others = run([args.tandem, "bench", args.model, "--threads", str(threads), "--compute", compute, "--repeat", "1", "--cases", "prefill/512,decode/b1/c1", "--json"])
    rows = [json.loads(line) for line in out.splitlines()]
    return {row["case"].split("/")[0]: row["value"] for row in rows}, others


def report(name, ours, theirs, others):
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    print(f"{name:28} tandem {max(ours):8.1f} (median {statistics.median(ours):8.1f})  llama.cpp {max(theirs):8.1f} (median {statistics.median(theirs):8.1f})  "
          f"ratio {max(ours) / max(theirs):5.2f} best/best, {statistics.median(ratios):5.2f} median of pairs [{ratios[0]:.2f}, {ratios[-1]:.2f}]  others {statistics.median(others):.2f} cores", flush=True)


def llama_stream(port, ids, tokens, record):
    body = json.dumps({"prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True, "cache_prompt": False, "return_tokens": True}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"})
    asked = last = time.time()
    first, gaps, count = None, [], 0
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            got = len(event.get("tokens") or [])
            if event.get("stop") or not got:
                continue
            now = time.time()
            if first is None:
                first = now - asked
            else:
                gaps.append(now - last)
            last, count = now, count + got
    record(first, gaps, count)


def llama_round(port, streams, tokens, prompt, long_prompt, seed):
    lock, ttft, gaps, total = threading.Lock(), [], [], [0]

    def record(first, own, count):
        with lock:
            ttft.append(first)
            gaps.extend(own)
            total[0] += count

    def ids(stream, count):
        return [(seed * 7919 + stream * 104729 + i * 31) % 9000 + 20 for i in range(count)]

    started = time.time()
    threads = [threading.Thread(target=llama_stream, args=(port, ids(s, prompt), tokens, record)) for s in range(streams)]
    for thread in threads:
        thread.start()
    intruder = None
    if long_prompt:
        time.sleep(0.15)
        intruder = threading.Thread(target=llama_stream, args=(port, ids(1000, long_prompt), 2, lambda *_: None))
        intruder.start()
    for thread in threads:
        thread.join()
    wall = time.time() - started
    if intruder:
        intruder.join()
    ttft.sort()
    gaps.sort()
    return {"tokens_per_second": total[0] / wall, "ttft_median": ttft[len(ttft) // 2], "gap_p99": gaps[len(gaps) * 99 // 100], "gap_worst": gaps[-1]}


def serve(args):
    port = 18080
    llama = subprocess.Popen([f"{args.llama}/llama-server", "-m", args.model, "-t", "2", "-np", "9", "-c", str(9 * 1024), "--port", str(port), "--no-webui"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ours = subprocess.Popen([args.tandem, "serve", args.model, "--threads", "2", "--max-batch", "9", "--context", "1024", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
    try:
        address = next(line for line in ours.stderr if line.startswith("listening on")).split()[2]
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(1)
        llama_round(port, 1, 8, 20, 0, 999)
        for repeat in range(args.repeat):
            out, _ = run([os.path.join(os.path.dirname(os.path.abspath(args.tandem)), "bench/serve_bench"), address, "8", "128", "20", "344", str(repeat * 10 + 1)])
            mine = [json.loads(line) for line in out.splitlines()]
            theirs = [llama_round(port, 8, 128, 20, 0, repeat * 10 + 1), llama_round(port, 8, 128, 20, 344, repeat * 10 + 2)]
            for name, a, b in zip(("8 streams", "8 streams + 344-token prompt"), mine, theirs):
                print(f"{name:28} tandem {a['tokens_per_second']:7.1f} tok/s ttft {a['ttft_median'] * 1e3:6.0f} ms gap p99 {a['gap_p99'] * 1e3:6.1f} worst {a['gap_worst'] * 1e3:6.1f} ms | "
                      f"llama-server {b['tokens_per_second']:7.1f} tok/s ttft {b['ttft_median'] * 1e3:6.0f} ms gap p99 {b['gap_p99'] * 1e3:6.1f} worst {b['gap_worst'] * 1e3:6.1f} ms | "
                      f"ratio {a['tokens_per_second'] / b['tokens_per_second']:.2f}", flush=True)
    finally:
        for process in (llama, ours):
            process.terminate()
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--llama", required=True)
    parser.add_argument("--tandem", default="build/cpu/tandem")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read()).group(1)
    print(f"{cpu}, {os.cpu_count()} cores; {os.path.basename(args.model)}; best and median of {args.repeat} interleaved runs", flush=True)
    if args.serve:
        return serve(args)
    for threads in (int(t) for t in args.threads.split(",")):
        ours, exact, theirs, others = [], [], [], []
        for _ in range(args.repeat):
            for results, measure in ((ours, lambda: tandem_bench(args, threads, "auto")), (theirs, lambda: llama_bench(args, threads)), (exact, lambda: tandem_bench(args, threads, "fp32"))):
                figures, busy = measure()
                results.append(figures)
                others.append(busy)
        for case in ("decode", "prefill"):
            report(f"{case}, {threads} threads, int8", [x[case] for x in ours], [x[case] for x in theirs], others)
        report(f"decode, {threads} threads, fp32", [x["decode"] for x in exact], [x["decode"] for x in theirs], others)


if __name__ == "__main__":
    main()
