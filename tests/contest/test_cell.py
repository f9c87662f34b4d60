"""The notebook cell's logic with the standard library alone, against the real program: AIMO_ENGINE and AIMO_MODEL name
it and a model whose answers don't matter."""
import importlib.util, json, os, signal, sys, tempfile, textwrap, unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = importlib.util.spec_from_file_location("cell", os.path.join(HERE, "../../docs/contest/cell.py"))
cell = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cell)


def program(folder, body):
    """A stand-in for the program."""
    path = os.path.join(folder, "program")
    with open(path, "w") as file:
        file.write(f"#!{sys.executable}\nimport json, os, sys, time\n" + textwrap.dedent(body))
    os.chmod(path, 0o755)
    return path


class Series:
    def __init__(self, *values):
        self.values = list(values)

    def to_list(self):
        return self.values


class RealProgram(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        command = [os.environ["AIMO_ENGINE"], "run", "-m", os.environ["AIMO_MODEL"], "--backend", "cpu", "--attempts",
                   "1", "-n", "4"]
        self.engine = cell.Engine(command, os.path.join(self.folder.name, "run"), default=7, time_limit_s=600)
        self.addCleanup(self.engine.stop)

    def test_problems_are_answered_and_a_killed_program_goes_on(self):
        self.assertEqual(self.engine.answer("a", "What is 1 + 1?"), 7)
        self.engine.process.send_signal(signal.SIGKILL)
        self.engine.process.wait()
        self.assertEqual(self.engine.answer("b", "What is\n2 + 2?"), 7)
        self.assertEqual(self.engine.n_starts, 2)
        self.assertEqual(self.engine.answer("a", "What is 1 + 1?"), 7)
        journal = open(os.path.join(self.folder.name, "run", "journal.jsonl")).read()
        self.assertEqual(journal.count('"kind":"problem_finished"'), 2)
        self.assertIn('"kind":"run_resumed"', journal)


class StandIn(unittest.TestCase):
    def engine(self, body, **settings):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        engine = cell.Engine([program(folder.name, body), "run"], os.path.join(folder.name, "run"), 5, **settings)
        self.addCleanup(engine.stop)
        return engine

    ANSWERS = """
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps({"id": asked["id"], "answer": len(asked["problem"])}), flush=True)
    """

    def test_each_question_gets_its_answer(self):
        engine = self.engine(self.ANSWERS)
        self.assertEqual([engine.answer("x", "é" * n) for n in (1, 300, 2)], [1, 300, 2])
        self.assertEqual(engine.n_starts, 1)

    def test_failures_end_in_the_default_answer(self):
        for body in ["sys.exit(3)", "print('nonsense', flush=True); time.sleep(60)", "print(5, flush=True); time.sleep(60)",
                     "print(json.dumps({'id': 'x', 'answer': None}), flush=True); time.sleep(60)"]:
            engine = self.engine(body, most_starts=2)
            self.assertEqual(engine.answer("x", "?"), 5, body)
        self.assertEqual(cell.Engine(["/no/such/program"], "/nowhere", 9, most_starts=1).answer("x", "?"), 9)

    def test_an_error_line_is_the_default_answer_and_ends_nothing(self):
        engine = self.engine("""
            for n, line in enumerate(sys.stdin):
                asked = json.loads(line)
                print(json.dumps({"id": asked["id"], "error": "no"} if n == 0 else {"id": asked["id"], "answer": 3}), flush=True)
        """)
        self.assertEqual([engine.answer("x", "?"), engine.answer("y", "?")], [5, 3])
        self.assertEqual(engine.n_starts, 1)

    def test_a_program_that_hangs_is_given_up(self):
        engine = self.engine("time.sleep(600)", time_limit_s=1, most_starts=1)
        engine.ends_at -= 60.5
        self.assertEqual(engine.answer("x", "?"), 5)

    def test_series_frames_and_texts_are_read(self):
        for value in ["a", Series("a"), [["a"]]]:
            self.assertEqual(cell.one(value), "a")
        self.assertEqual(cell.one(Series(17)), "17")


class Wire(unittest.TestCase):
    def test_fields_are_read_and_written(self):
        # From the format's own documentation: field 1 = 150, field 2 = "testing".
        self.assertEqual(list(cell.fields(b"\x08\x96\x01\x12\x07testing")), [(1, 150), (2, b"testing")])
        self.assertEqual(cell.field(2, b"testing"), b"\x12\x07testing")
        self.assertEqual(list(cell.fields(cell.field(300, b"x" * 200))), [(300, b"x" * 200)])
        self.assertEqual(list(cell.fields(b"\x0d\x01\x02\x03\x04\x09" + b"\x00" * 8)), [(1, b"\x01\x02\x03\x04"), (1, b"\x00" * 8)])
        for broken in [b"\x08", b"\x12\x09x", b"\xff" * 12, b"\x0b", b"\x12\xff\xff\xff\xff\x0f"]:
            with self.assertRaises(ValueError):
                list(cell.fields(broken))

    def test_texts_are_values(self):
        self.assertEqual(cell.value_of(cell.field(1, "é".encode())), "é")
        with self.assertRaises(ValueError):
            cell.value_of(cell.field(15, b""))


if __name__ == "__main__":
    unittest.main()
