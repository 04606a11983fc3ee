// Shows the class distributions of one epoch, selected with the slider or played.
(() => {
  const box = document.getElementById("forming");
  if (!box) return;
  const data = JSON.parse(box.querySelector("script").textContent);
  const [range, out, play, rows] = ["input", "output", "button", ".rows"].map((name) => box.querySelector(name));
  const make = (parent, tag, kind) => {
    const element = parent.appendChild(document.createElement(tag));
    if (kind) element.className = kind;
    return element;
  };
  const cards = data.classes.map((name, row) => {
    const card = make(rows, "div");
    const head = make(card, "h4");
    head.textContent = `${name} `;
    const how = make(head, "span");
    const bars = data.classes.map((other, column) => {
      const bar = make(card, "div", column === row ? "bar own" : "bar");
      make(bar, "span").textContent = other;
      const track = make(bar, "div");
      return { fill: make(track, "i"), mean: make(track, "b"), value: make(bar, "div") };
    });
    return { how, bars };
  });
  const show = () => {
    const place = Number(range.value);
    out.textContent = `epoch ${data.epochs[place]}`;
    cards.forEach(({ how, bars }, row) => {
      how.textContent = data.met[place][row] ? "class mean" : "threshold distribution";
      bars.forEach(({ fill, mean, value }, column) => {
        const degree = data.rows[place][row][column];
        mean.style.left = `${100 * data.means[place][row][column]}%`;
        fill.style.width = `${100 * degree}%`;
        value.textContent = degree.toFixed(2);
      });
    });
  };
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "\u25b6";
  };
  const step = () => {
    if (Number(range.value) >= Number(range.max)) return stop();
    range.value = Number(range.value) + 1;
    show();
  };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(range.value) >= Number(range.max)) range.value = 0;
    show();
    play.textContent = "\u23f8";
    timer = setInterval(step, 450);
  });
  range.addEventListener("input", () => {
    if (timer) stop();
    show();
  });
  show();
})();
