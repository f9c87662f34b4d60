"""The notebook cell against a stand-in of the contest's gateway: gRPC with the messages made by protobuf itself, tables
made by polars and pandas. AIMO_ENGINE and AIMO_MODEL name the program and a model. Needs grpcio, protobuf, pyarrow,
polars, pandas."""
import csv, importlib.util, io, os, random, tempfile, unittest

import grpc, pandas, polars, pyarrow
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = importlib.util.spec_from_file_location("cell", os.path.join(HERE, "../../docs/contest/cell.py"))
cell = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cell)


def messages():
    """The contract, as message classes."""
    file = descriptor_pb2.FileDescriptorProto(name="gateway.proto", package="kaggle_evaluation_client", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    payload = file.message_type.add(name="Payload")
    payload.oneof_decl.add(name="value")
    for number, name in [(1, "str_value"), (9, "pandas_dataframe_value"), (10, "polars_dataframe_value"),
                         (11, "pandas_series_value"), (12, "polars_series_value")]:
        kind = kinds.TYPE_STRING if number == 1 else kinds.TYPE_BYTES
        payload.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL, oneof_index=0)
    request = file.message_type.add(name="KaggleEvaluationRequest")
    request.field.add(name="name", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    request.field.add(name="args", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
                      type_name=".kaggle_evaluation_client.Payload")
    entry = request.nested_type.add(name="KwargsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL,
                    type_name=".kaggle_evaluation_client.Payload")
    request.field.add(name="kwargs", number=3, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
                      type_name=".kaggle_evaluation_client.KaggleEvaluationRequest.KwargsEntry")
    response = file.message_type.add(name="KaggleEvaluationResponse")
    response.field.add(name="payload", number=1, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL,
                       type_name=".kaggle_evaluation_client.Payload")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    get = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName("kaggle_evaluation_client." + name))
    return get("Payload"), get("KaggleEvaluationRequest"), get("KaggleEvaluationResponse")


Payload, Request, Response = messages()


def parquet_series(name, text):
    out = io.BytesIO()
    polars.DataFrame({name: [text]}).write_parquet(out, compression="lz4", statistics=False)
    return Payload(polars_series_value=out.getvalue())


def stream_series(name, text):
    table = polars.DataFrame({name: [text]}).to_arrow()
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return Payload(polars_series_value=out.getvalue())


def pandas_series(name, text):
    out = io.BytesIO()
    pandas.DataFrame({name: [text]}).to_parquet(out, index=False, compression="lz4")
    return Payload(pandas_series_value=out.getvalue())


class Gateway:
    """Asks for one prediction after the other, in an order of its own."""

    def __init__(self, port):
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(f"localhost:{port}", options=options)
        self.send = self.channel.unary_unary(f"/{cell.SERVICE}/Send", Request.SerializeToString, Response.FromString)

    def predict(self, id, problem, form=parquet_series):
        request = Request(name="predict", args=[form("id", id), form("problem", problem)])
        payload = self.send(request, timeout=300, wait_for_ready=True).payload
        assert payload.WhichOneof("value") == "polars_dataframe_value"
        table = pyarrow.ipc.open_stream(payload.polars_dataframe_value).read_all()
        return polars.from_arrow(table)

    def run(self, rows, path):
        rows = list(rows)
        random.Random(5).shuffle(rows)
        polars.concat([self.predict(*row) for row in rows]).write_parquet(path)


class Contest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        command = [os.environ["AIMO_ENGINE"], "run", "-m", os.environ["AIMO_MODEL"], "--backend", "cpu", "--attempts",
                   "2", "-n", "8"]
        self.engine = cell.Engine(command, os.path.join(self.folder, "run"), default=3, time_limit_s=900)
        self.addCleanup(self.engine.stop)
        server, port = cell.serve_wire(self.engine)
        self.addCleanup(server.stop, None)
        self.gateway = Gateway(port)

    def test_a_whole_set_becomes_a_submission(self):
        rows = [(f"p{n}", f"What is ${n} \\cdot 7$?\né") for n in range(5)]
        path = os.path.join(self.folder, "submission.parquet")
        self.gateway.run(rows, path)
        table = polars.read_parquet(path)
        self.assertEqual(table.columns, ["id", "answer"])
        self.assertEqual(table.schema["answer"], polars.Int64)
        self.assertEqual(sorted(table["id"]), [id for id, _ in rows])
        self.assertTrue(all(0 <= a <= 99_999 for a in table["answer"]))

    def test_every_form_of_a_value_is_taken(self):
        for form in [parquet_series, stream_series, pandas_series, lambda _, text: Payload(str_value=text)]:
            self.assertEqual(self.gateway.predict("same", "What is 1 + 1?", form)["id"].to_list(), ["same"])
        journal = open(os.path.join(self.folder, "run", "journal.jsonl")).read()
        self.assertEqual(journal.count('"kind":"problem_finished"'), 1, "it was the same question each time")

    def test_values_by_name_are_taken_and_nonsense_is_refused(self):
        request = Request(name="predict", kwargs={"id": parquet_series("id", "k")})
        request.args.append(parquet_series("id", "k"))
        self.assertTrue(self.gateway.send(request, timeout=300).payload.polars_dataframe_value)
        with self.assertRaises(grpc.RpcError) as refused:
            self.gateway.send(Request(name="shutdown"), timeout=60)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(self.gateway.predict("still", "What is 2?")["id"].to_list(), ["still"])

    def test_the_programs_own_files_are_read_by_polars(self):
        rows = os.path.join(self.folder, "test.csv")
        with open(rows, "w", newline="") as file:
            csv.writer(file).writerows([["id", "problem"], ["a", "What, is \"1\"?"], ["b", "x\ny"]])
        out = os.path.join(self.folder, "submission.parquet")
        command = [*self.engine.command, rows, "--kaggle", "-o", out, "--run-dir", os.path.join(self.folder, "set"),
                   "--default-answer", "4"]
        import subprocess
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        expected = {"id": ["a", "b"], "answer": [4, 4]}
        self.assertEqual(polars.read_parquet(out).to_dict(as_series=False), expected)
        self.assertEqual(pandas.read_parquet(out).to_dict("list"), expected)
        self.assertEqual(polars.read_csv(out.replace(".parquet", ".csv")).to_dict(as_series=False), expected)


class Module(unittest.TestCase):
    def test_frames_for_the_contests_own_module(self):
        engine = type("Engine", (), {"answer": lambda self, id, problem: len(problem)})()
        predict = cell.predictor(engine)
        for series in [polars.Series, pandas.Series]:
            table = predict(series(["a"]), series(["abc"]))
            self.assertEqual(table.to_dict(as_series=False), {"id": ["a"], "answer": [3]})


if __name__ == "__main__":
    unittest.main()
