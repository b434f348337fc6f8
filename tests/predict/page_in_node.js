// The page's own lines against the few parts of a browser that they use; prints what the page then shows.
const fs = require("fs");
const [, , pagePath, answerText, okText] = process.argv;
class Element {
  constructor(kind) { Object.assign(this, {kind, children: [], style: {}, listeners: {}, value: "", textContent: ""}); }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  addEventListener(name, act) { this.listeners[name] = act; }
  set innerHTML(_) { throw new Error("a name was written as HTML"); }
}
const known = {};
for (const id of ["text", "title", "action", "send", "error", "result", "form"]) known[id] = new Element(id);
globalThis.document = {getElementById: id => known[id], createElement: kind => new Element(kind)};
let sent;
globalThis.fetch = async (url, request) => {
  sent = {url, body: JSON.parse(request.body), type: request.headers["Content-Type"]};
  return {ok: okText === "ok", json: async () => JSON.parse(answerText)};
};
eval(fs.readFileSync(pagePath, "utf8").match(/<script>([\s\S]*)<\/script>/)[1]);
known.text.value = "오늘 <b>";
known.form.listeners.submit({preventDefault() {}}).then(() => {
  const rows = known.result.children.map(section => [section.className, ...section.children.slice(1).map(row =>
    [row.children[0].textContent, row.children[1].children[0].style.width, row.children[2].textContent])]);
  console.log(JSON.stringify({sent, rows, error: known.error.textContent, disabled: known.send.disabled}));
});
