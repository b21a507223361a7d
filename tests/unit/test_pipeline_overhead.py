"""bench.pipeline_overhead reads Snakemake's plan right: a job left out of the script would flatter the baseline."""

from __future__ import annotations

from bench.pipeline_overhead import commands, levels, script

PLAN = """Building DAG of jobs...
Job stats:
job      count
-----  -------
all          1
total        3


[Tue Nov 24 20:50:21 2026]
rule make_one:
    input: a.txt, rule.txt
    output: one/a.json, one/b c.json
    log: logs/make_one.log
    jobid: 4
    resources: tmpdir=/tmp
Shell command:~
        make --config '{"x":[1]}'             --out one/a.json >logs/make_one.log 2>&1
~

[Tue Nov 24 20:50:21 2026]
localrule make_two:
    input: one/a.json
    output: two/a.json (update)
    jobid: 5
Shell command:~
        for f in 1 2; do
            make two
        done
~

[Tue Nov 24 20:50:21 2026]
rule all:
    input: two/a.json
    jobid: 0
Shell command: None
Job stats:
job      count
""".replace("~", " ")  # Snakemake's own lines end in spaces


def test_each_job_s_command_and_folders_are_found_in_order() -> None:
    found = commands(PLAN)
    assert [rule for rule, _, _ in found] == ["make_one", "make_two"]
    text = script(found)
    assert "mkdir -p logs one\nmake --config '{\"x\":[1]}'" in text
    assert text.index("make two") > text.index("mkdir -p two")
    assert "None" not in text


def test_levels_are_the_jobs_of_the_longest_chain() -> None:
    dot = "digraph {\n\t0[label = all];\n\t1 -> 0\n\t2 -> 0\n\t3 -> 2\n\t4 -> 3\n\t4 -> 1\n}"
    assert levels(dot) == 3
