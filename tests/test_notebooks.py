"""Every notebook runs from a fresh kernel and is stored with its outputs; interrupting one leaves no thread."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
start_new_kernel = pytest.importorskip("jupyter_client.manager").start_new_kernel
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("gymnasium")
pytest.importorskip("tensorboard")  # with it come the packages that the videos need

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def client_of(notebook, folder):
    return nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setenv("RLPLAY_SHORT", "1")


@pytest.mark.notebooks
@pytest.mark.timeout(600)
@each
def test_a_notebook_runs_in_its_short_form_without_warnings(path, tmp_path):
    notebook = read(path)
    client_of(notebook, tmp_path).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@each
def test_a_stored_notebook_is_valid_and_shows_its_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.metadata.kernelspec.name, notebook.metadata.kernelspec.language) == ("python3", "python")
    assert path.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # in one go, from a fresh kernel
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    for text in [*said, *(cell.source for cell in notebook.cells)]:
        assert not re.search(r"/(tmp|home|work|root|Users|opt|usr)/|site-packages|\\Users\\|\r|it/s\]", text)


@pytest.mark.notebooks
def test_interrupting_and_rerunning_a_notebook_cell_leaves_no_thread(tmp_path):
    notebook = read(FOLDER / "01_quickstart.ipynb")
    for cell in notebook.cells:  # an engine that has a thread
        cell.source = cell.source.replace("rollout.same import", "rollout.threaded import")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (loop,) = (k for k, cell in enumerate(code) if "loss.backward()" in cell.source)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:

        def run(source, *, interrupt=False):
            """Run a cell to its end, or interrupt it once it prints; return what it printed, and its error."""
            asked, said, error = client.execute(source, stop_on_error=False), "", None
            while True:
                message = client.get_iopub_msg(timeout=300)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                kind, content = message["msg_type"], message["content"]
                if kind == "stream":
                    said += content["text"]
                    if interrupt:
                        manager.interrupt_kernel()
                        interrupt = False
                if kind == "error":
                    error = content["ename"]
                if kind == "status" and content["execution_state"] == "idle":
                    return said, error

        count = "print(sum(thread.name.startswith('rlplay') for thread in __import__('threading').enumerate()))"
        for cell in code[:loop]:
            assert run(cell.source)[1] is None
        said, error = run(f"n_fragments = 10**9\n{code[loop].source}", interrupt=True)
        assert error == "KeyboardInterrupt", said
        said, error = run(
            f"n_fragments = 3\n{code[loop].source.replace('loss.backward()', f'{count}; loss.backward()')}"
        )
        assert error is None
        counted = re.findall(r"^\d+$", said, re.MULTILINE)
        assert counted == ["1"] * len(counted)  # the thread of the new feed, and no other
        assert len(counted) == 3 * 4 * 4  # three fragments, four epochs of four minibatches
        assert run(count) == ("0\n", None)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
