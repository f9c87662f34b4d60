# One notebook cell: hands the contest's problems to aimo-engine, one at a time. Set the first block, paste it whole.
#
# The gateway asks this process; this process asks `aimo-engine run --stdio`, one line a problem. Whatever fails, every
# question gets an answer: a program that died is started again with --resume (and knows what it has answered), one that
# says nothing for too long is given up, and what can't be solved gets the default answer.
import io, json, os, queue, shutil, stat, subprocess, sys, threading, time

ENGINE = "/kaggle/input/aimo-engine/aimo-engine"  # the program
MODEL = "/kaggle/input/model/model.gguf"
CONTEST = "/kaggle/input/ai-mathematical-olympiad-progress-prize-3"
RUN = "/kaggle/working/run"  # the run's folder, with its journal
TIME_LIMIT_S = 4.75 * 3600  # of the 5 hours
OPTIONS = ["-c", "65536", "-n", "32768", "--attempts", "8", "--stop", "first-k:4", "--expect-problems", "50",
           "--temp", "1.0", "--min-p", "0.02", "--top-k", "0", "--top-p", "1"]
DEFAULT_ANSWER = 0


class Engine:
    """The program as a process. Only one thread asks it at a time."""

    def __init__(self, command, run, default=0, time_limit_s=None, most_starts=4):
        self.command, self.run, self.default, self.most_starts = list(command), run, default, most_starts
        self.ends_at = None if time_limit_s is None else time.monotonic() + time_limit_s
        self.time_limit_s, self.process, self.lines, self.n_starts = time_limit_s, None, None, 0
        self.answers, self.lock = {}, threading.Lock()

    def start(self):
        """Starts the program, or starts it again behind what it has done."""
        self.n_starts += 1
        journal = os.path.join(self.run, "journal.jsonl")
        if os.path.exists(journal) and os.path.getsize(journal) > 0:
            arguments = [self.command[0], "run", "--resume", self.run]
        else:
            limit = [] if self.time_limit_s is None else ["--time-limit", f"{int(self.time_limit_s)}s"]
            arguments = self.command + ["--stdio", "--run-dir", self.run, "--default-answer", str(self.default)] + limit
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        encoding="utf-8", bufsize=1)
        # Read on a thread of its own: a program that hangs must not hang the notebook.
        self.lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process.stdout, self.lines), daemon=True).start()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.put(line)
        lines.put(None)

    def answer(self, id, problem):
        """The answer to a problem: an integer, always."""
        with self.lock:
            if (id, problem) not in self.answers:
                self.answers[id, problem] = self._answer(id, problem)
            return self.answers[id, problem]

    def _answer(self, id, problem):
        while True:
            try:
                if self.process is None or self.process.poll() is not None:
                    if self.n_starts >= self.most_starts:
                        return self.default
                    self.start()
                self.process.stdin.write(json.dumps({"id": id, "problem": problem}) + "\n")
                self.process.stdin.flush()
                reply = self._reply(id)
                if "answer" in reply:
                    return int(reply["answer"])
                print("aimo-engine:", reply.get("error"), file=sys.stderr)
                return self.default
            except (OSError, TypeError, ValueError) as error:
                print(f"aimo-engine: {error!r}", file=sys.stderr)
                self.stop()
                if self.n_starts >= self.most_starts:
                    return self.default

    def _reply(self, id):
        """The line that answers, without those of questions that were given up."""
        while True:
            # The program keeps to its own limit; this is for one that hangs.
            left = None if self.ends_at is None else max(self.ends_at + 60 - time.monotonic(), 0.1)
            try:
                line = self.lines.get(timeout=left)
            except queue.Empty:
                raise TimeoutError("the program has said nothing until the end of the time") from None
            if line is None:
                raise OSError(f"the program ended with status {self.process.wait()}")
            reply = json.loads(line)
            if not isinstance(reply, dict):
                raise ValueError(f"not an answer: {line!r}")
            if reply.get("id") in (id, None):
                return reply

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def one(value):
    """The text in a one-row series or frame of polars or pandas, or in itself."""
    if hasattr(value, "to_list"):
        value = value.to_list()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    while isinstance(value, (list, tuple)):
        value = value[0]
    return str(value)


def frame(id, answer):
    """The row that the gateway wants back."""
    try:
        import polars
        return polars.DataFrame({"id": [id], "answer": [answer]})
    except ImportError:
        import pandas
        return pandas.DataFrame({"id": [id], "answer": [answer]})


def predictor(engine):
    """What the gateway calls: `predict(id, problem)`, positionally or by name."""
    def predict(*values, **named):
        values = list(values) + list(named.values())
        id, problem = one(values[0]), one(values[1])
        answer = engine.answer(id, problem)
        print(f"{id}: {answer}", flush=True)
        return frame(id, answer)
    return predict


# The wire, for where the contest's own module isn't there: gRPC, one method, messages of these fields.
SERVICE = "kaggle_evaluation_client.KaggleEvaluationService"
STR, PANDAS_FRAME, POLARS_FRAME, PANDAS_SERIES, POLARS_SERIES = 1, 9, 10, 11, 12


def fields(message):
    """The fields of a protobuf message, as (number, bytes or integer)."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            if at >= len(message) or shift > 63:
                raise ValueError("a message that breaks off")
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(kind)
        length = varint() if kind == 2 else length
        if length is None or at + length > len(message):
            raise ValueError("a message that breaks off")
        yield tag >> 3, message[at:at + length]
        at += length


def field(number, data):
    """One field of bytes."""
    def varint(value):
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return bytes(out)
    return varint(number << 3 | 2) + varint(len(data)) + data


def value_of(payload):
    """A text, or the first cell of a table: parquet or an Arrow stream."""
    for number, data in fields(payload):
        if number == STR:
            return data.decode("utf-8")
        if number in (PANDAS_FRAME, POLARS_FRAME, PANDAS_SERIES, POLARS_SERIES):
            import pyarrow
            import pyarrow.parquet
            if data[:4] == b"PAR1":
                table = pyarrow.parquet.read_table(io.BytesIO(data))
            else:
                table = pyarrow.ipc.open_stream(data).read_all()
            return table.column(0)[0].as_py()
    raise ValueError("a value of a kind that no problem has")


def table_of(id, answer):
    """The frame that goes back, as an Arrow stream."""
    import pyarrow
    table = pyarrow.table({"id": [id], "answer": [answer]})
    out = io.BytesIO()
    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    with pyarrow.ipc.new_stream(out, table.schema, options=options) as writer:
        writer.write_table(table)
    return out.getvalue()


def reply_to(engine, request):
    """Answers a request of the gateway."""
    name, values = "", []
    for number, data in fields(request):
        if number == 1:
            name = data.decode("utf-8")
        elif number == 2:
            values.append(value_of(data))
        elif number == 3:
            values.append(value_of(dict(fields(data))[2]))
    if name != "predict" or len(values) < 2:
        raise ValueError(f"asked for {name!r} with {len(values)} values")
    id, problem = str(values[0]), str(values[1])
    answer = engine.answer(id, problem)
    print(f"{id}: {answer}", flush=True)
    return field(1, field(POLARS_FRAME, table_of(id, answer)))


def serve_wire(engine, ports=(50051, *range(60053, 60063))):
    """Serves the gateway without the contest's module. Gives the server and its port."""
    import grpc
    from concurrent import futures

    def send(request, context):
        try:
            return reply_to(engine, request)
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, repr(error))
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
               ("grpc.so_reuseport", 0)]
    handler = grpc.unary_unary_rpc_method_handler(send)
    for port in ports:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=options)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Send": handler}),))
        try:
            if server.add_insecure_port(f"[::]:{port}"):
                server.start()
                return server, port
        except RuntimeError:
            continue  # the port is taken
    raise RuntimeError(f"none of the ports {ports} is free")


def executable(path):
    """A copy that can be run: inputs of a notebook can't be made executable."""
    if os.access(path, os.X_OK):
        return path
    copy = os.path.join("/tmp", os.path.basename(path))
    shutil.copyfile(path, copy)
    os.chmod(copy, os.stat(copy).st_mode | stat.S_IXUSR)
    return copy


def main():
    engine = Engine([executable(ENGINE), "run", "-m", MODEL, *OPTIONS], RUN, DEFAULT_ANSWER, TIME_LIMIT_S)
    engine.start()  # the model is loaded while the gateway comes up
    sys.path.insert(0, CONTEST)
    try:
        from kaggle_evaluation.aimo_3_inference_server import AIMO3InferenceServer
    except ImportError:
        server, port = serve_wire(engine)
        print("serving on port", port, flush=True)
        server.wait_for_termination()
        return
    server = AIMO3InferenceServer(predictor(engine))
    if os.getenv("KAGGLE_IS_COMPETITION_RERUN"):
        server.serve()
    else:
        server.run_local_gateway((os.path.join(CONTEST, "test.csv"),))


if __name__ == "__main__":
    main()
