// Over a picture: what a token is, and which one to take in its place. `element`, `trigger` and `server` are gradio's.
const share = (p) => (p >= 0.1 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)) + " %";
const word = (ids) => ids.join(".");
const picked = () => element.querySelector(".token.picked"); // a new picture has none

const describe = (cell) => {
  const token = JSON.parse(cell.dataset.token);
  const about = element.querySelector(".about");
  about.replaceChildren();
  const line = document.createElement("p");
  line.textContent = `position ${cell.dataset.place}, id ${word(token.ids)}`
    + (token.p === null ? "" : `, probability ${share(token.p)}`);
  about.append(line);
  const offer = (ids, text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.dataset.ids = JSON.stringify(ids);
    button.disabled = cell !== picked();
    button.classList.toggle("own", word(ids) === word(token.ids));
    about.append(button);
  };
  for (const [ids, p] of token.others) offer(ids, `${word(ids)}: ${share(p)}`);
  return { token, about, offer };
};

const replaceBy = (ids) => {
  const cell = picked();
  if (!cell) return;
  cell.classList.remove("picked");
  const picture = Number(cell.closest("figure").dataset.picture);
  trigger("select", { picture, place: Number(cell.dataset.place), ids });
};

// Without probabilities any code may be written, and the nearest and farthest are offered.
const offerCodes = async (cell, { token, about, offer }) => {
  const input = document.createElement("input");
  input.setAttribute("aria-label", "another id");
  input.value = word(token.ids);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Replace";
  // what is no number goes as it was written, for the sentence that refuses it
  const code = (text) => (/^\d+$/.test(text) ? Number(text) : text);
  const send = () => replaceBy(input.value.trim().split(".").map(code));
  button.addEventListener("click", send);
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") send(); });
  about.append(input, button);
  if (token.ids.length > 1) return;
  const tokenizer = cell.closest("[data-tokenizer]").dataset.tokenizer;
  const found = await server.neighbors({ tokenizer, code: token.ids[0] });
  if (picked() !== cell) return; // another one was picked while this one was asked for
  for (const [name, codes] of [["nearest codes", found[0]], ["farthest codes", found[1]]]) {
    if (!codes.length) continue;
    const line = document.createElement("p");
    line.textContent = name;
    about.append(line);
    for (const code of codes) offer([code], String(code));
  }
};

for (const kind of ["pointerover", "focusin"]) {
  element.addEventListener(kind, (event) => {
    const cell = event.target.closest(".token");
    if (cell && !picked()) describe(cell);
  });
}
// One token of a picture is a stop of the Tab key: the last one that had the focus. Arrow keys go to the others.
element.addEventListener("focusin", (event) => {
  const cell = event.target.closest(".token");
  if (!cell) return;
  for (const stop of cell.closest("figure").querySelectorAll('.token[tabindex="0"]')) stop.tabIndex = -1;
  cell.tabIndex = 0;
});
element.addEventListener("keydown", (event) => {
  const cell = event.target.closest(".token");
  if (!cell) return;
  const columns = Number(getComputedStyle(cell.parentElement).getPropertyValue("--columns"));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!step) return;
  event.preventDefault(); // no scrolling
  const cells = [...cell.closest("figure").querySelectorAll(".token")];
  cells[cells.indexOf(cell) + step]?.focus();
});
element.addEventListener("click", (event) => {
  const cell = event.target.closest(".token");
  if (cell) {
    const before = picked();
    before?.classList.remove("picked");
    cell.classList.toggle("picked", cell !== before);
    const described = describe(cell);
    if (cell === before) return;
    if (cell.closest("[data-tokenizer]")) offerCodes(cell, described);
    const fixed = cell.closest("[data-fixed]")?.dataset.fixed;
    if (!fixed) return;
    const line = document.createElement("p");
    line.textContent = fixed;
    described.about.append(line);
    return;
  }
  const choice = event.target.closest(".about button[data-ids]");
  if (choice) replaceBy(JSON.parse(choice.dataset.ids));
});
