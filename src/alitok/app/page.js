// Over a picture: what a token is, and which one to take in its place. `element`, `trigger` and `server` are gradio's.
const share = (p) => (p >= 0.1 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)) + " %";
const word = (ids) => ids.join(".");
let picked = null;

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
    button.disabled = cell !== picked;
    button.classList.toggle("own", word(ids) === word(token.ids));
    about.append(button);
  };
  for (const [ids, p] of token.others) offer(ids, `${word(ids)}: ${share(p)}`);
  return { token, about, offer };
};

const replaceBy = (ids) => {
  const picture = Number(picked.closest("figure").dataset.picture);
  trigger("select", { picture, place: Number(picked.dataset.place), ids });
};

// Without probabilities any code may be written, and the nearest and farthest are offered.
const offerCodes = async ({ token, about, offer }) => {
  const own = picked;
  const input = document.createElement("input");
  input.setAttribute("aria-label", "another id");
  input.value = word(token.ids);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Replace";
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    replaceBy(input.value.trim().split(".").map(Number));
  });
  about.append(input, button);
  if (token.ids.length > 1) return;
  const tokenizer = own.closest("[data-tokenizer]").dataset.tokenizer;
  const found = await server.neighbors({ tokenizer, code: token.ids[0] });
  if (picked !== own) return; // another one was picked while this one was asked for
  for (const [name, codes] of [["nearest codes", found[0]], ["farthest codes", found[1]]]) {
    if (!codes.length) continue;
    const line = document.createElement("p");
    line.textContent = name;
    about.append(line);
    for (const code of codes) offer([code], String(code));
  }
};

element.addEventListener("pointerover", (event) => {
  const cell = event.target.closest(".token");
  if (cell && !(picked && picked.isConnected)) describe(cell);
});
element.addEventListener("focusin", (event) => {
  const cell = event.target.closest(".token");
  if (cell && !(picked && picked.isConnected)) describe(cell);
});
element.addEventListener("click", (event) => {
  const cell = event.target.closest(".token");
  if (cell) {
    picked?.classList.remove("picked");
    picked = cell === picked ? null : cell;
    picked?.classList.add("picked");
    const described = describe(cell);
    if (picked && cell.closest("[data-tokenizer]")) offerCodes(described);
    return;
  }
  const choice = event.target.closest(".about button[data-ids]");
  if (choice && picked && picked.isConnected) replaceBy(JSON.parse(choice.dataset.ids));
});
