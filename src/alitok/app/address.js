// The page's address holds the settings of the open tab's last pictures. Each tab has its own, so that a look at another
// tab loses none.
window.alitok = (() => {
  const opened = location.search; // the page changes it when it has loaded
  const queries = {}; // tab -> query
  const tabOf = (query) => new URLSearchParams(query).get("tab");
  let open = tabOf(opened);
  const write = () => { if (open in queries) history.replaceState(null, "", "?" + queries[open]); };
  const keep = (query) => {
    if (query) queries[tabOf(query)] = query;
    write();
  };
  const select = (tab) => {
    open = tab;
    write();
  };
  // the queries of all tabs, one a line; that of the open one is the first
  const start = (lines) => {
    const all = lines.split("\n");
    open = tabOf(all[0]);
    all.forEach(keep);
  };
  return { opened, keep, select, start };
})();
