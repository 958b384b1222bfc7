"""How a report looks beyond what all pages share: on a screen, and on paper."""

STYLE = """
main.steerfn { max-width: 66em; }
.steerfn .scroll td.number { white-space: normal; }
.steerfn .scroll td { overflow-wrap: break-word; padding: .35em .6em; }
.steerfn section > h2 { border-bottom: 1px solid rgba(128, 128, 128, .45); padding-bottom: .2em; margin-top: 2.2em; }
.steerfn nav ol { columns: 2 18em; padding-left: 1.6em; margin: 1.2em 0; }
.steerfn .verdict { border: 1px solid rgba(128, 128, 128, .45); border-left: .5em solid #7a7f87; border-radius: 4px;
  padding: .2em 1.2em .6em; margin: 1em 0; background: rgba(128, 128, 128, .07); }
.steerfn .verdict.shown { border-left-color: #0072b2; }
.steerfn .verdict.text-only { border-left-color: #e69f00; }
.steerfn .verdict > h2 { border: 0; margin: .5em 0 0; font-size: .85em; letter-spacing: .06em;
  text-transform: uppercase; opacity: .72; }
.steerfn .headline { font-size: 1.3em; font-weight: 600; margin: .2em 0 .4em; }
.steerfn .verdict ul { margin: .4em 0; padding-left: 1.2em; font-size: .93em; }
.steerfn .warning { border-left: .3em solid #d55e00; padding: .3em .8em; background: rgba(213, 94, 0, .09); }
.steerfn .facts { width: 100%; }
.steerfn .facts th { width: 15em; font-weight: 500; white-space: normal; border-bottom-width: 1px;
  border-bottom-color: rgba(128, 128, 128, .35); }
.steerfn figure { margin: 1em 0; padding: .6em; background: #ffffff; color: #1b1f24;
  border: 1px solid rgba(128, 128, 128, .35); border-radius: 4px; text-align: center; }
.steerfn figcaption { font-size: .9em; text-align: left; padding: .4em .3em 0; }
.steerfn .signatures { display: grid; grid-template-columns: 1fr 1fr; gap: 1.1em 2em; margin-top: 1em; }
.steerfn .signatures label { display: flex; gap: .6em; align-items: baseline; white-space: nowrap; }
.steerfn .signatures .wide, .steerfn .signatures .box, .steerfn .signatures fieldset { grid-column: 1 / -1; }
.steerfn .signatures fieldset { display: grid; grid-template-columns: 2fr 1fr; gap: 1.1em 2em; margin: 0;
  border: 1px solid rgba(128, 128, 128, .45); border-radius: 4px; padding: .8em 1em 1.2em; }
.steerfn .signatures input[type=text] { flex: 1; min-width: 4em; font: inherit; color: inherit; background: transparent;
  border: 0; border-bottom: 1px solid currentColor; border-radius: 0; padding: .1em .2em; }
@media (max-width: 40em) {
  .steerfn .signatures, .steerfn .signatures fieldset { grid-template-columns: 1fr; }
  .steerfn .facts th, .steerfn .facts td { display: block; width: auto; border-bottom: 0; padding-bottom: 0; }
}
@page {
  size: A4; margin: 18mm 15mm 20mm;
  @bottom-right { content: counter(page) " / " counter(pages); font-size: 9pt; }
}
@media print {
  :root { color-scheme: light; }
  body { background: #ffffff; color: #000000; }
  main.steerfn { font-size: 10pt; max-width: none; }
  a { color: inherit; text-decoration: none; }
  .steerfn .scroll { overflow: visible; }
  .steerfn table { font-size: .82em; }
  .steerfn th, .steerfn td { padding: .25em .45em; }
  .steerfn td.number, .steerfn th.number, .steerfn th { white-space: normal; }
  .steerfn h2, .steerfn h3, .steerfn h2 + p, .steerfn h3 + p { break-after: avoid; }
  .steerfn figure, .steerfn tr, .steerfn .verdict, .steerfn fieldset, .steerfn li { break-inside: avoid; }
  .steerfn thead { display: table-header-group; }
  .steerfn figure img { max-height: 110mm; }
  .steerfn #sign { break-inside: avoid; }
  .steerfn .muted { opacity: 1; }
  .steerfn .warning, .steerfn .verdict, .steerfn pre, .steerfn del, .steerfn ins { print-color-adjust: exact; }
}
"""
