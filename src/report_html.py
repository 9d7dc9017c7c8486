"""A report as one HTML page: no script, no address, inline style and drawings; light and dark, on paper, read aloud. Pure.

Above pipeline_graph. Everything that comes from data goes through svg_shapes.escaped().

    run_report.Report -> page()
"""
from __future__ import annotations

import time

import pipeline_graph
import svg_shapes
from svg_shapes import escaped, seconds_text
from text_table import display_width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

    from run_report import Report, Stage

CLASSES = {"ok": "ok", "completed": "ok", "skipped": "skipped", "failed": "failed", "died": "failed", "interrupted": "warn",
           "running": "running",
           "waiting": "warn", "notRun": "skipped"}
WORDS = {"notRun": "not run", "ok": "done", "died": "runner died"}
NAMES = {"logs": "Logs", "stages": "Stages", "timeline": "Timeline", "graph": "Graph", "totals": "Control totals", "why": "Why",
         "evidence": "Evidence", "runs": "Earlier runs"}
MANY_SKIPPED = 12           # more skipped stages are listed by name only
MANY_TOTALS = 40            # of more control totals, only those that do not fit are listed
STYLE = """
:root{color-scheme:light dark;--page:#fff;--soft:#f5f7fa;--line:#dfe4ec;--text:#1b2230;--dim:#586275;--ok:#1d7a4b;--ok-soft:#e3f4ea;
--failed:#b3261e;
--failed-soft:#fce8e6;--warn:#8a5a00;--warn-soft:#fdf1d8;--run:#1f5fbf;--run-soft:#e4edfb;--skip:#586275;--skip-soft:#eceff4;--edge:#9aa4b5;--bar:#3f7fd1}
@media(prefers-color-scheme:dark){:root{--page:#11151c;--soft:#191f29;--line:#2b3442;--text:#e0e6f0;--dim:#9ba7ba;--ok:#6bd39a;
--ok-soft:#173527;
--failed:#ff9088;--failed-soft:#45201e;--warn:#f0c060;--warn-soft:#3d3013;--run:#8db8ff;--run-soft:#1b2d4d;--skip:#9ba7ba;--skip-soft:#232b38;--edge:#5a667c;--bar:#6ea2ec}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 24px}
header{padding-top:28px}
h1{font-size:24px;line-height:1.2;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:15px;margin:32px 0 8px;padding-top:12px;border-top:1px solid var(--line)}
h3{font-size:13px;margin:16px 0 4px}
p{margin:4px 0 8px}
.lead,.hint,footer{color:var(--dim)}
.hint{font-size:12.5px}
.head{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center}
.tag{display:inline-block;padding:0 8px;border-radius:10px;font-size:12px;line-height:20px;font-weight:600;white-space:nowrap;
color:var(--skip);background:var(--skip-soft)}
.tag.ok{color:var(--ok);background:var(--ok-soft)}.tag.failed{color:var(--failed);background:var(--failed-soft)}
.tag.warn{color:var(--warn);background:var(--warn-soft)}.tag.running{color:var(--run);background:var(--run-soft)}
h1+.tag{font-size:13px;line-height:24px;border-radius:12px;padding:0 11px}
.tiles{display:flex;flex-wrap:wrap;gap:1px;margin:18px 0 4px;background:var(--line);border:1px solid var(--line);border-radius:6px;
overflow:hidden}
.tiles div{background:var(--page);padding:8px 12px;flex:1 1 112px}.tiles div:first-child{flex-basis:150px}
.tiles dt{color:var(--dim);font-size:12px}.tiles dd{margin:0;font-size:16px;font-weight:600;white-space:nowrap}
.tiles small{display:block;white-space:normal;font-size:12px;line-height:1.35;font-weight:400;color:var(--dim)}
.box{border-left:3px solid var(--failed);background:var(--failed-soft);padding:8px 12px;margin:14px 0;border-radius:0 4px 4px 0;
overflow-wrap:anywhere}
.box.warn{border-color:var(--warn);background:var(--warn-soft)}.box p,.box ul{margin:2px 0}.box ul{padding-left:18px}
.wide{overflow-x:auto}.short{max-width:520px}.pair{display:flex;flex-wrap:wrap;align-items:flex-start;gap:0 48px}.pair>*{flex:1 1 300px;min-width:0}
.pair>:first-child{flex-grow:2}
nav{font-size:13px;margin:10px 0 0}nav a{color:var(--run);text-decoration:none;margin-right:14px}
nav a:hover,nav a:focus{text-decoration:underline}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-weight:500;color:var(--dim);font-size:12px;white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:600;position:sticky;left:0;background:var(--page)}.n{text-align:right;white-space:nowrap}
th.n+th:not(.n),td.n+td:not(.n){padding-left:12px}td.why{overflow-wrap:anywhere;min-width:220px}
td.s,th.s{padding:0 0 0 14px;vertical-align:middle}
th.name{white-space:nowrap;max-width:260px;overflow:hidden;text-overflow:ellipsis}
.zero{color:var(--dim)}.bad{color:var(--failed);font-weight:600}.good{color:var(--ok)}
ul.plain{list-style:none;margin:0;padding:0}
ul.names{list-style:none;margin:4px 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px;color:var(--dim)}
pre,code{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--soft);border:1px solid var(--line);border-radius:4px;padding:8px 10px;margin:4px 0;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:6px 0;font-size:13px}dl.facts dt{color:var(--dim)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
svg{display:block}svg text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--text)}
svg .axis{fill:var(--dim);font-size:11px}.grid{stroke:var(--line)}.span.ok{fill:var(--bar)}.span.failed{fill:var(--failed)}
.span.running{fill:var(--run);opacity:.6}svg .label{font-size:11px}
.node rect{fill:var(--soft);stroke:var(--edge)}.node.files rect{fill:var(--page);stroke:var(--line)}.node.files text{fill:var(--dim)}
.node.ok rect{fill:var(--ok-soft);stroke:var(--ok)}.node.failed rect,.node.died rect{fill:var(--failed-soft);stroke:var(--failed)}
.node.interrupted rect,.node.waiting rect{fill:var(--warn-soft);stroke:var(--warn)}
.node.running rect{fill:var(--run-soft);stroke:var(--run)}.node.notRun rect,.node.unused rect{stroke-dasharray:3 3}
.edge{fill:none;stroke:var(--edge);stroke-width:1.1}.edge.needs{stroke-dasharray:4 3}.tip{fill:var(--edge)}
.spark{fill:none;stroke:var(--bar);stroke-width:1.3}.dot{fill:var(--bar)}.dot.failed{fill:var(--failed)}
footer{font-size:12px;padding-top:28px;padding-bottom:24px}footer p{border-top:1px solid var(--line);padding-top:12px}
@media(max-width:600px){main,header,footer{padding-left:14px;padding-right:14px}header{padding-top:18px}h1{font-size:20px}
dl.facts{grid-template-columns:1fr;gap:0}dl.facts dd{margin-bottom:6px}}
@media print{:root{--page:#fff;--soft:#f5f7fa;--line:#ccd2dc;--text:#000;--dim:#444}body{font-size:11px}
main,header,footer{max-width:none;padding:0}
.wide{overflow:visible}.wide svg{max-width:100%;height:auto}h2{break-after:avoid}nav{display:none}tr,.box,pre{break-inside:avoid}
.tag,.tiles,.box,svg{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""


def page(report: Report) -> str:
    """Return the whole page."""
    title = "%s: run %s" % (report.pipeline, report.run_id)
    sections = [(name, body) for name, body in (
        ("logs", _logs(report)), ("stages", _stage_table(report)), ("timeline", _timeline(report)), ("graph", _graph(report)),
        ("totals", _totals(report)),
        ("why", _why(report)), ("evidence", _isolation(report)), ("runs", _history(report))) if body]
    links = "\n".join('<a href="#%s">%s</a>' % (name, NAMES[name]) for name, _ in sections)
    parts = [_head(report), "<main>", _failures(report), _notes(report), _tiles(report), '<nav aria-label="Sections">%s</nav>' % links]
    parts += ['<section id="%s">%s</section>' % one for one in sections] + ["</main>"]
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="referrer" content="no-referrer"><title>%s</title><style>%s</style></head>\n<body>\n%s\n<footer><p>%s</p></footer>\n</body></html>\n') % (
                escaped(title), STYLE, "\n".join(part for part in parts if part),
                escaped("Made %s from the records below state/. `verify` checks them, this page does not." % utc(report.generated)))


# --- pieces ----------------------------------------------------------------------------------------------------------

def utc(seconds: Optional[float]) -> str:
    """Return a time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds is not None else "not known"


def size_text(count: float) -> str:
    """Return bytes for people: 640 B, 3.1 kB, 12 MB."""
    unit = 0
    while count >= 999.5 and unit < 5:
        count, unit = count / 1000.0, unit + 1
    return "%s %s" % ("%.1f" % count if unit and count < 9.95 else "%.0f" % count, ("B", "kB", "MB", "GB", "TB", "PB")[unit])


def grouped(count: float) -> str:
    """Return a number with thin spaces between thousands."""
    return "{:,}".format(int(count)).replace(",", "\u202f")


def _tag(status: str) -> str:
    return '<span class="tag %s">%s</span>' % (CLASSES.get(status, ""), escaped(WORDS.get(status, status)))


def _number(text: str, is_zero: bool) -> str:
    return '<td class="n%s">%s</td>' % (" zero" if is_zero else "", "\u2013" if is_zero else escaped(text))


def _section(title: str, body: str, hint: str = "") -> str:
    return '<h2>%s</h2>%s%s' % (escaped(title), '<p class="hint">%s</p>' % escaped(hint) if hint else "", body)


def _table(heads: List[Tuple[str, str]], rows: List[str], caption: str) -> str:
    """heads: (text, class) of the columns; rows: the cells of each, as HTML."""
    head = "".join('<th scope="col"%s>%s</th>' % (' class="%s"' % kind if kind else "", escaped(text)) for text, kind in heads)
    return '<div class="wide" role="region" tabindex="0" aria-label="%s"><table><thead><tr>%s</tr></thead><tbody>\n%s\n</tbody></table></div>' % (
        escaped(caption), head, "\n".join("<tr>%s</tr>" % row for row in rows))


def _row_head(name: str) -> str:
    return '<th scope="row" class="name" title="%s">%s</th>' % (escaped(name), escaped(name))


def _wide(drawing: str, label: str) -> str:
    return '<div class="wide" role="region" tabindex="0" aria-label="%s">%s</div>' % (escaped(label), drawing)


# --- sections --------------------------------------------------------------------------------------------------------

def _head(report: Report) -> str:
    times = [utc(report.started)] if report.started is not None else []
    if report.duration_s is not None:
        times.append("%s %s" % ("for" if report.ended is None else "took", seconds_text(report.duration_s)))
    call = ", call %d" % report.invocation if report.invocation > 1 else ""
    return '<header><div class="head"><h1>%s</h1>%s</div><p class="lead">Run <strong>%s</strong>%s%s%s</p></header>' % (
        escaped(report.pipeline), _tag(report.state), escaped(report.run_id), escaped(call),
        escaped("".join(" \u00b7 " + one for one in times)),
        "<br>" + escaped(report.description) if report.description else "")


def _failures(report: Report) -> str:
    bad = [stage for stage in report.stages if stage.status in ("failed", "died", "interrupted", "waiting")]
    if not bad:
        return ""
    return '<div class="box" role="alert">%s</div>' % "".join(
        "<p><strong>%s</strong> %s%s</p>" % (escaped(stage.name), escaped(WORDS.get(stage.status, stage.status)),
                                             escaped(": " + stage.reason if stage.reason else ""))
        for stage in bad)


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    return '<div class="box warn"><p><strong>Not whole.</strong> What follows is what the records still tell.</p><ul>%s</ul></div>' % "".join(
        "<li>%s</li>" % escaped(note) for note in report.notes)


def _tiles(report: Report) -> str:
    count = {status: sum(1 for stage in report.stages if stage.status == status)
             for status in ("ok", "skipped", "failed", "died", "interrupted", "running", "notRun", "waiting")}
    others = ["%d %s" % (count[status], "not run" if status == "notRun" else status)
              for status in ("skipped", "failed", "died", "interrupted", "running", "waiting", "notRun") if count[status]]
    retries = sum(_retries(stage) for stage in report.stages)
    rejected = sum(stage.counts.get("rejected", 0) for stage in report.stages if stage.status != "skipped")
    tasks = [stage.tasks for stage in report.stages if stage.tasks]
    tiles = [("Stages done", "%d<small> of %d%s</small>" % (count["ok"], len(report.stages), escaped("".join(", " + one for one in others)))),
             ("Took", escaped(seconds_text(report.duration_s)) if report.duration_s is not None else "\u2013")]
    if tasks:
        total = {name: sum(one.get(name, 0) for one in tasks) for name in ("total", "ok", "skipped", "failed", "vanished")}
        tiles.append(("Tasks", "%s<small> %s</small>" % (grouped(total["total"]), escaped(", ".join(
            "%s %s" % (grouped(total[name]), name) for name in ("ok", "skipped", "failed", "vanished") if total[name])))))
    tiles += [("Retries", "%d" % retries), ("Rejected", grouped(rejected)),
              ("Written", escaped(size_text(sum(stage.bytes_out for stage in report.stages if stage.status == "ok")))),
              ("Processor time", escaped(seconds_text(sum(stage.cpu_s for stage in report.stages)))),
              ("Largest process", escaped(size_text(max([stage.rss_bytes for stage in report.stages] or [0]))))]
    return '<dl class="tiles">%s</dl>' % "".join("<div><dt>%s</dt><dd>%s</dd></div>" % (escaped(name), value) for name, value in tiles)


def _retries(stage: Stage) -> int:
    """Return how many attempts were not the first of the stage, or of one of its tasks; unknown, and 0, of tasks that were cut short."""
    begun = stage.tasks.get("ok", 0) + stage.tasks.get("failed", 0) if stage.tasks else 1
    return 0 if stage.tasks and stage.status in ("died", "interrupted") else max(0, stage.attempts - begun)


def _stage_table(report: Report) -> str:
    has_counts = any(stage.counts for stage in report.stages)
    has_tasks = any(stage.tasks for stage in report.stages)
    heads = [("Stage", ""), ("Status", ""), ("Took", "n"), ("Attempts", "n")] + ([("Tasks", "n")] if has_tasks else [])
    heads += [("Read", "n"), ("Written", "n"), ("Rejected", "n")] if has_counts else []
    heads += [("Bytes in", "n"), ("Bytes out", "n"), ("CPU", "n"), ("Memory", "n")]
    heads += [("Earlier runs", "s")] if any(len(stage.history) > 1 for stage in report.stages) else []
    rows = [_stage_row(stage, has_counts, has_tasks, heads[-1][0] == "Earlier runs") for stage in report.stages]
    return _section("Stages", _table(heads, rows, "Stages") if rows else "<p>No stage is recorded.</p>")


def _stage_row(stage: Stage, has_counts: bool, has_tasks: bool, has_history: bool) -> str:
    worked = stage.status not in ("skipped", "notRun", "waiting")
    progress = ' <span class="hint">%s</span>' % escaped(stage.progress) if stage.progress else ""
    cells = [_row_head(stage.name), "<td>%s%s</td>" % (_tag(stage.status), progress),
             _number(seconds_text(stage.duration_s), not worked), _number(str(stage.attempts), not stage.attempts)]
    if has_tasks:
        failed = stage.tasks.get("failed", 0)
        cells.append('<td class="n">%s%s</td>' % (grouped(stage.tasks["total"]) if "total" in stage.tasks else "\u2013",
                                                  ' <span class="bad">%s failed</span>' % grouped(failed) if failed else ""))
    if has_counts:
        cells += [_number(grouped(stage.counts.get(name, 0)), name not in stage.counts or name == "rejected" and not stage.counts[name])
                  for name in ("read", "written", "rejected")]
    cells += [_number(size_text(stage.bytes_in), not stage.bytes_in), _number(size_text(stage.bytes_out), not stage.bytes_out),
              _number(seconds_text(stage.cpu_s), not stage.cpu_s), _number(size_text(stage.rss_bytes), not stage.rss_bytes)]
    durations = [seconds for seconds, _ in stage.history]
    spark = svg_shapes.sparkline_svg(durations, [failed for _, failed in stage.history],
                                     "Durations of %s over %d runs: %s to %s, last %s" % (
        stage.name, len(durations), seconds_text(min(durations)), seconds_text(max(durations)), seconds_text(durations[-1]))) if durations else None
    return "".join(cells) + ('<td class="s">%s</td>' % (spark or "") if has_history else "")


def _timeline(report: Report) -> str:
    rows = [(stage.name, "%s: %s" % (stage.name, stage.status), stage.spans) for stage in report.stages if stage.spans]
    if not rows:
        return ""
    length = max([report.duration_s or 0.0] + [span[1] for _, _, spans in rows for span in spans])
    idle = len(report.stages) - len(rows)
    hint = "Time since the start of the run; one bar for each attempt%s." % (", one for all tasks of a stage" if any(stage.tasks for stage in report.stages) else "")
    if idle:
        hint += " %d stage%s without work %s left out." % (idle, "" if idle == 1 else "s", "is" if idle == 1 else "are")
    title = "Timeline of the attempts of %d stages over %s" % (len(rows), seconds_text(length))
    return _section("Timeline", _wide(svg_shapes.timeline_svg(rows, length, title, display_width), "Timeline"), hint)


def _graph(report: Report) -> str:
    stages = sum(1 for node in report.nodes if node.kind == "stage")
    if not stages:
        return ""
    few = len(report.nodes) <= pipeline_graph.FEW_NODES
    what = "Rounded: files." if few else "The files between stages are left out."
    drawing = pipeline_graph.drawing(report.nodes, report.edges, "Graph of %d stages of pipeline %s" % (stages, report.pipeline))
    return _section("Stages and files" if few else "Graph of the stages", _wide(drawing, "Graph"),
                    "As the pipeline file has it today. %s Dashed: needs without files." % what)


def _totals(report: Report) -> str:
    if not report.totals:
        return ""
    rows = []
    shown = [one for one in report.totals if len(report.totals) <= MANY_TOTALS or one.inside or one.before]
    fits = len(report.totals) - len(shown)
    for one in shown:
        bad = "bad" if one.is_strict else ""
        inside = '<span class="%s">%s</span>' % ((bad, _difference(one.inside)) if one.inside else ("good", "fits"))
        if one.expected is None:
            before = '<span class="zero">\u2013</span>'
        else:
            more = " and %d more" % (len(one.makers) - 3) if len(one.makers) > 3 else ""
            text = "%s written by %s%s" % (grouped(one.expected), ", ".join(one.makers[:3]), more)
            before = '<span class="%s">%s</span> %s' % (
                (bad, _difference(one.before), escaped("to " + text)) if one.before else ("good", "fits", escaped(text)))
        rows.append("%s<td class=\"n\">%s</td><td class=\"n\">%s</td><td class=\"n\">%s</td><td>%s</td><td>%s</td><td>%s</td>" % (
            _row_head(one.stage), grouped(one.read), grouped(one.written), grouped(one.rejected), inside, before, "required" if one.is_strict else '<span class="zero">\u2013</span>'))
    heads = [("Stage", ""), ("Read", "n"), ("Written", "n"), ("Rejected", "n"), ("Read = written + rejected", ""),
             ("Read = written before it", ""), ("In the spec", "")]
    body = _table(heads, rows, "Control totals") if rows else ""
    if fits:
        body += "<p>The totals of %d %sstages fit.</p>" % (fits, "other " if rows else "")
    return _section("Control totals", body, "Records. A stage that counts words or sums up writes another number than it reads: "
                    "only what the spec requires must fit. A dash: not compared.")


def _difference(count: int) -> str:
    return ("+" if count > 0 else "\u2212") + grouped(abs(count))


def _why(report: Report) -> str:
    shown = [stage for stage in report.stages if stage.status != "skipped" and stage.reason]
    skipped = [stage for stage in report.stages if stage.status == "skipped"]
    if len(skipped) <= MANY_SKIPPED:
        shown, skipped = [stage for stage in report.stages if stage.reason], []
    rows = ["%s<td>%s</td><td class=\"why\">%s</td>" % (
        _row_head(stage.name), _tag(stage.status), "<br>".join(escaped(part) for part in stage.reason.split("; "))) for stage in shown]
    body = _table([("Stage", ""), ("Status", ""), ("Reason", "")], rows, "Reasons") if rows else ""
    if skipped:
        body += "<h3>Up to date: %d stages</h3><ul class=\"names\">%s</ul>" % (
            len(skipped), "".join("<li>%s</li>" % escaped(stage.name) for stage in skipped))
    return _section("Why", body, "What of its key changed, for a stage that ran; what went wrong, for one that failed.") if body else ""


def _logs(report: Report) -> str:
    parts = []
    for stage in report.stages:
        parts += ["<h3>%s</h3>" % escaped(stage.name)] if stage.logs else []
        for path, text, is_cut in stage.logs:
            parts.append("<p class=\"hint\">%s%s</p><pre tabindex=\"0\">%s</pre>" % (
                "the end of " if is_cut else "", "<code>%s</code>" % escaped(path), escaped(text) if text.strip() else "(nothing was printed)"))
        if stage.failed_tasks:
            parts.append("<h3>%s: failed tasks</h3>%s" % (escaped(stage.name), _table([("Task", ""), ("Reason", "")], [
                "%s<td class=\"why\">%s</td>" % (_row_head(task),
                                                 escaped(why)) for task, why in stage.failed_tasks], "Failed tasks of " + stage.name)))
    return _section("Logs of what did not end well" if any(stage.status != "running" for stage in report.stages if stage.logs) else "Logs",
                    "".join(parts)) if parts else ""


def _isolation(report: Report) -> str:
    scan, kernel = report.isolation.get("scan"), report.isolation.get("kernel")
    facts = []
    if isinstance(kernel, dict):
        method = str(kernel.get("method"))
        facts.append(("Network", "closed by the kernel (%s%s%s)" % (method, ", probed" if kernel.get("probed") else "", ", strict"
                                                                    if kernel.get("strict") else "")
                      if method != "none" else "not closed by the kernel: %s" % (kernel.get("why") or "not known why")))
    if isinstance(scan, dict):
        allowed = scan.get("allow") if isinstance(scan.get("allow"), list) else []
        through = ", let through: %s" % ", ".join(map(str, allowed)) if allowed else ""
        facts.append(("Programs searched", "%s files, %s refused%s" % (scan.get("files"), scan.get("refused"), through)))
    if "hook" in report.isolation:
        facts.append(("Python hook", str(report.isolation["hook"])))
    if report.isolation.get("asRoot"):
        facts.append(("Account", "root"))
    about = [(name[:1].upper() + name[1:], value) for name, value in report.about]
    if report.ledger:
        facts += [("Ledger head", report.ledger["head"]), ("Run hash", report.ledger["hash"])]
        facts += [("Sealed with key", report.ledger["sealed"])] if report.ledger["sealed"] else []
    lists = ['<dl class="facts">%s</dl>' % "".join("<dt>%s</dt><dd>%s</dd>" % (escaped(name), escaped(value)) for name, value in one)
             for one in (facts, about) if one]
    return _section("Isolation and evidence", '<div class="pair">%s</div>' % "".join(lists)) if lists else ""


def _history(report: Report) -> str:
    runs = report.history
    if len(runs) < 2:
        return ""
    spark = svg_shapes.sparkline_svg([seconds for _, _, seconds in runs], [state != "completed" for _, state, _ in runs],
                                     "Durations of the last %d runs, %s to %s" % (len(runs), seconds_text(min(run[2] for run in runs)),
                                             seconds_text(max(run[2] for run in runs))), 420, 44)
    rows = ["%s<td>%s</td><td class=\"n\">%s</td>" % (_row_head(run_id), _tag(state), escaped(seconds_text(seconds)))
            for run_id, state, seconds in reversed(runs[-10:])]
    table = _table([("Run", ""), ("State", ""), ("Took", "n")], rows, "Runs")
    return _section("Runs up to this one", '<div class="short">%s%s</div>' % (_wide(spark, "Durations") if spark else "", table))
