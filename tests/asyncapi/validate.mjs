// Reads AsyncAPI documents and prints what the parser has to say of each; exits with 1 where that includes an error.
// usage: node validate.mjs FILE...
import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";

const SEVERITIES = ["error", "warning", "information", "hint"];
let failed = false;

for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf-8"));
  for (const one of diagnostics) {
    const line = one.range.start.line + 1;
    console.log(`${file}:${line}: ${SEVERITIES[one.severity]}: ${one.message} (${one.code}, ${one.path.join(".")})`);
  }
  failed ||= document === undefined || diagnostics.some((one) => one.severity === 0);
  if (document !== undefined) {
    const count = `${document.channels().length} channels, ${document.operations().length} operations`;
    console.log(`${file}: AsyncAPI ${document.version()}, ${count}`);
  }
}
process.exit(failed ? 1 : 0);
