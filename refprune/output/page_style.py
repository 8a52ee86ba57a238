"""How the pages of reports look: colours for light and dark, tables, pictures, paper."""

#: Colours by name: of a light page, of a dark one. c0 … c9 are those of matplotlib's cycle, which `figures.svg` names so.
COLOURS = {
    "ink": ("#1c2330", "#e6e9ef"),
    "soft": ("#566070", "#a9b2c0"),
    "paper": ("#ffffff", "#14171c"),
    "card": ("#f4f6f9", "#1e232b"),
    "line": ("#d3d9e2", "#3a424e"),
    "link": ("#1a56b0", "#8ab8ff"),
    "good": ("#14713a", "#6bd396"),
    "good-card": ("#e8f5ec", "#15301f"),
    "bad": ("#b3221b", "#ff9a92"),
    "bad-card": ("#fdecea", "#3d1a19"),
    "open": ("#7d5400", "#f0c060"),
    "open-card": ("#fff5dc", "#362a10"),
    "c0": ("#1f62b5", "#7db4ff"),
    "c1": ("#b8560a", "#ffa65c"),
    "c2": ("#1d7d43", "#6fd39a"),
    "c3": ("#bd2a2e", "#ff8f8f"),
    "c4": ("#7442b0", "#c6a0ff"),
    "c5": ("#80543f", "#d6ab92"),
    "c6": ("#b03a8c", "#f59ad6"),
    "c7": ("#636b78", "#aab3c1"),
    "c8": ("#707012", "#d3d364"),
    "c9": ("#0c7786", "#5fd3e0"),
}


def _variables(which: int) -> str:
    return "".join(f"--{name}:{values[which]};" for name, values in COLOURS.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(0)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"Liberation Sans",Arial,sans-serif;overflow-wrap:break-word}}
main{{max-width:70rem;margin:0 auto;padding:1.5rem 1rem 3rem}}
h1{{font-size:1.5rem;line-height:1.25;margin:0 0 .75rem}}
h2{{font-size:1.2rem;line-height:1.3;margin:0 0 .5rem}}
h3{{font-size:1rem;margin:1.25rem 0 .25rem}}
section{{margin:2.25rem 0 0}}
p,ul,ol{{margin:.5rem 0;max-width:46rem}}
ul,ol{{padding-left:1.25rem}}li{{margin:.25rem 0}}
a{{color:var(--link)}}
code,pre{{font-family:ui-monospace,"SF Mono",Consolas,"Liberation Mono","DejaVu Sans Mono",monospace;font-size:.875em}}
pre{{white-space:pre-wrap;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;
margin:.75rem 0}}
.verdict{{font-size:1.125rem;margin:0;max-width:none;padding:.75rem 1rem;border-radius:6px;border-left:5px solid var(--link);
background:var(--card)}}
.verdict .sign{{font-weight:700}}
.verdict.good{{border-color:var(--good);background:var(--good-card)}}.good .sign{{color:var(--good)}}
.verdict.bad{{border-color:var(--bad);background:var(--bad-card)}}.bad .sign{{color:var(--bad)}}
.verdict.open{{border-color:var(--open);background:var(--open-card)}}.open .sign{{color:var(--open)}}
.numbers{{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:1rem 0 0}}
.numbers div{{display:flex;flex-direction:column;border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem}}
.numbers dd{{margin:0;font-size:1.375rem;line-height:1.2;font-weight:600;font-variant-numeric:tabular-nums}}
.numbers dt{{color:var(--soft);font-size:.875rem;line-height:1.35;margin-top:.2rem}}
.finding{{border-left:4px solid var(--bad);padding-left:1rem}}
.table{{width:fit-content;max-width:100%;overflow-x:auto;margin:.75rem 0;border:1px solid var(--line);border-radius:6px}}
.table:focus-visible{{outline:2px solid var(--link)}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9375rem}}
caption{{text-align:left;background:var(--card)}}
caption span{{display:block;position:sticky;left:0;max-width:calc(100vw - 2.2rem);padding:.5rem .8rem;color:var(--soft);
font-size:.875rem}}
th,td{{padding:.35rem .8rem;text-align:left;vertical-align:top;border-top:1px solid var(--line)}}
thead th{{font-weight:600;vertical-align:bottom}}
th[scope=row]{{font-weight:500}}
th:first-child{{position:sticky;left:0;background:var(--paper);z-index:1}}
.n{{text-align:right;white-space:nowrap}}
.note td{{border-top:0;padding-top:0;padding-bottom:.6rem;color:var(--soft);font-size:.875rem;line-height:1.4}}
.note span{{display:block;position:sticky;left:.8rem;max-width:min(44rem,calc(100vw - 4rem))}}
tr.bad th,tr.bad td{{background:var(--bad-card)}}tr.bad td:last-child{{color:var(--bad);font-weight:600}}
tr.open th,tr.open td{{background:var(--open-card)}}tr.open td:last-child{{color:var(--open);font-weight:600}}
.stacked table{{font-size:.875rem}}.stacked th,.stacked td{{padding:.35rem .6rem}}
.pictures{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.75rem 2.5rem;margin:1rem 0}}
figure{{margin:0;min-width:0;max-width:30rem}}figure.wide{{grid-column:1/-1;max-width:none;overflow-x:auto}}
figcaption{{font-size:.875rem;line-height:1.4;margin-bottom:.4rem}}figcaption span{{color:var(--soft)}}
svg{{display:block;width:100%;height:auto;color:var(--ink)}}svg text{{fill:currentColor;font-family:inherit}}
.wide svg{{width:auto;max-width:none}}
.formula{{overflow-x:auto;overflow-y:hidden;padding:.5rem 0;
margin:.5rem 0}}math{{font-size:1.15em}}.formula math{{width:fit-content}}
.source{{color:var(--soft);font-size:.875rem}}
.index{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:.1rem 2rem;list-style:none;
padding:0;max-width:none;
font-size:.9375rem}}
footer{{margin-top:3rem;padding-top:.75rem;border-top:1px solid var(--line);color:var(--soft);font-size:.875rem}}
@media (max-width:40rem){{
th,td{{padding:.35rem .6rem}}
th:first-child{{min-width:6.5rem;max-width:46vw}}
.n{{white-space:normal}}
.numbers{{grid-template-columns:repeat(2,minmax(0,1fr))}}
.stacked{{border:0;width:auto;overflow:visible}}
.stacked table,.stacked tbody,.stacked tr,.stacked th,.stacked td,.stacked caption{{display:block;width:100%}}
.stacked caption{{background:none}}.stacked caption span{{padding-left:0}}
.stacked thead{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}}
.stacked tr{{border:1px solid var(--line);border-radius:6px;margin:0 0 .6rem;padding:.3rem 0;overflow:hidden}}
.stacked th[scope=row]{{position:static;max-width:none;border:0;font-weight:600;padding:.25rem .8rem}}
.stacked td{{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.15rem .8rem;text-align:right;
white-space:normal}}
.stacked td::before{{content:attr(data-label);color:var(--soft);text-align:left;flex:none;max-width:55%}}
.stacked td:empty{{display:none}}
.stacked tr:has(+.note){{margin-bottom:0;border-bottom:0;border-radius:6px 6px 0 0;padding-bottom:0}}
.stacked .note{{border-top:0;border-radius:0 0 6px 6px}}.stacked .note td{{display:block;text-align:left}}
.stacked .note span{{position:static}}.stacked tr.bad{{background:var(--bad-card)}}
.stacked tr.open{{background:var(--open-card)}}
.finding{{padding-left:.6rem}}
}}
@media print{{
body{{font-size:10.5pt}}main{{max-width:none;padding:0}}
.table{{overflow:visible}}table{{font-size:9pt}}th:first-child{{position:static}}
figure,tr,.numbers div,.verdict{{break-inside:avoid}}h2,h3,figcaption{{break-after:avoid}}
a{{color:inherit;text-decoration:none}}
}}
"""
