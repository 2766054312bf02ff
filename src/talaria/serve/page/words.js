// Every word of the page, English and Chinese: words("stop"), words("retryIn", 5), and fillWords() for the markup.

const WORDS = {
  newChat: ["New chat", "新对话"],
  conversations: ["Conversations", "对话列表"],
  conversation: ["Conversation", "对话"],
  openSide: ["Show conversations", "显示对话列表"],
  closeSide: ["Hide conversations", "隐藏对话列表"],
  exportAll: ["Export all as JSON", "全部导出为 JSON"],
  exportOne: ["Export as JSON", "导出为 JSON"],
  settings: ["Settings", "设置"],
  otherLanguage: ["中文界面", "English interface"],
  otherLanguageName: ["中文", "English"],
  theme: ["Colours: as the system, light or dark", "颜色:跟随系统、浅色或深色"],
  themeSystem: ["System", "跟随系统"],
  themeLight: ["Light", "浅色"],
  themeDark: ["Dark", "深色"],
  model: ["Model", "模型"],
  noModel: ["no model yet", "尚无模型"],
  greeting: ["What would you like to ask?", "想问些什么?"],
  greetingNote: [
    "Conversations stay in this browser. Answers come from the model on this server and can be wrong.",
    "对话保存在本浏览器中。回答由本服务器上的模型生成,可能有误。",
  ],
  typeHere: ["Type a message", "输入消息"],
  send: ["Send", "发送"],
  stop: ["Stop (Esc)", "停止(Esc)"],
  toEnd: ["To the newest message", "回到最新消息"],
  hint: ["Enter sends · Shift+Enter begins a line · Esc stops", "Enter 发送 · Shift+Enter 换行 · Esc 停止"],
  you: ["You", "你"],
  assistant: ["Answer of {}", "{} 的回答"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  notCopied: ["Could not copy: select the text and copy it by hand", "无法复制:请选中文字后手动复制"],
  edit: ["Edit; what follows is replaced", "编辑;其后的内容将被替换"],
  editing: ["Edit your message", "编辑你的消息"],
  again: ["Answer again", "重新回答"],
  thumbUp: ["Good answer; sends this conversation up to here to the server", "回答得好;到此为止的对话会发送到服务器"],
  thumbDown: ["Bad answer; sends this conversation up to here to the server", "回答不好;到此为止的对话会发送到服务器"],
  thanks: ["Kept on the server. Thank you.", "已保存到服务器,谢谢。"],
  takenBack: ["Taken back.", "已撤回。"],
  cancel: ["Cancel", "取消"],
  save: ["Save", "保存"],
  system: ["System prompt", "系统提示"],
  systemHint: ["How the model should behave; empty: nothing is said", "希望模型如何表现;留空则不设"],
  temperature: ["Temperature", "温度"],
  topP: ["Top p", "Top p"],
  maxTokens: ["Most tokens an answer", "回答的最大词元数"],
  seed: ["Seed", "随机种子"],
  serverDefault: ["as the server sets", "由服务器决定"],
  drawn: ["drawn anew", "每次随机"],
  settingsNote: [
    "Temperature 0 always takes the likeliest token. With a fixed seed the same question gives the same answer, also when asked again.",
    "温度为 0 时总取最可能的词元。固定随机种子后,同样的问题总得到同样的回答,重新回答也不变。",
  ],
  changeKey: ["API key …", "API 密钥……"],
  keyTitle: ["API key", "API 密钥"],
  keyWhy: [
    "The server answers whoever has a key. Whoever runs it makes one with this command, where the server was started:",
    "服务器只回答持有密钥的人。密钥由运行服务器的人在启动服务器的目录中用下面的命令创建:",
  ],
  key: ["Key", "密钥"],
  keepKey: ["Remember it in this browser", "在本浏览器中记住"],
  keyNote: [
    "It is sent to this server only. Not remembered, it is forgotten when this tab closes.",
    "密钥只会发送到本服务器。若不记住,关闭标签页后即清除。",
  ],
  useKey: ["Use this key", "使用此密钥"],
  needKey: ["The server asks for an API key before it answers.", "服务器需要 API 密钥才会回答。"],
  enterKey: ["Enter a key", "输入密钥"],
  rename: ["Rename", "重命名"],
  name: ["Name", "名称"],
  deleteTitle: ["Delete this conversation?", "删除此对话?"],
  deleteNote: ["It is kept in this browser alone and cannot be brought back.", "它只保存在本浏览器中,删除后无法恢复。"],
  remove: ["Delete", "删除"],
  untitled: ["New chat", "新对话"],
  thinking: ["The answer is being written", "正在回答"],
  finished: ["The answer is finished", "回答完毕"],
  stopped: ["Stopped by you.", "已被你停止。"],
  tooShort: [
    "The answer reached its greatest length. Allow more tokens in the settings, or ask for the rest.",
    "回答已达最大长度。可在设置中提高上限,或请模型继续。",
  ],
  nothing: ["The model answered nothing. Answer again, or put the question another way.", "模型没有给出内容。请重新回答,或换个问法。"],
  retry: ["Try again", "重试"],
  retryIn: ["Try again in {} s", "{} 秒后可重试"],
  error401: ["The server does not know this key, or it was revoked. Enter another one.", "服务器不认识此密钥,或密钥已被撤销。请输入其他密钥。"],
  error403: ["The server refuses this page: {} Open it under the name 127.0.0.1 or localhost.", "服务器拒绝了此页面:{} 请用 127.0.0.1 或 localhost 打开。"],
  error404: ["The server does not have what was asked for: {} Choose another model above.", "服务器没有所请求的内容:{} 请在上方选择其他模型。"],
  error413: ["The conversation is too large for this server: {} Begin a new chat, or edit an earlier message.", "对话对本服务器来说太大:{} 请开始新对话,或编辑之前的消息。"],
  error429: ["The server is busy, or this key asked too often. Wait a little, then try again.", "服务器繁忙,或此密钥请求过于频繁。请稍等后重试。"],
  error503: ["The server is stopping. Try again when it has been started anew.", "服务器正在停止。请在其重新启动后重试。"],
  error504: ["The answer took longer than this server allows. Ask for fewer tokens in the settings.", "回答超出了服务器允许的时间。请在设置中减少词元数。"],
  error500: ["The server failed: {} Its log says why. Try again.", "服务器出错:{} 原因见其日志。请重试。"],
  error400: ["The server refuses the request: {} Change the settings, edit the message or begin a new chat.", "服务器拒绝了请求:{} 请修改设置、编辑消息或开始新对话。"],
  errorNetwork: [
    "The server cannot be reached. Check the network, and that talaria serve still runs; nothing you wrote is lost.",
    "无法连接服务器。请检查网络以及 talaria serve 是否仍在运行;你输入的内容不会丢失。",
  ],
  errorCut: ["The connection broke before the answer ended; what had come is kept.", "回答结束之前连接中断;已收到的部分已保留。"],
  errorFull: ["The browser's storage is full: this conversation is not kept. Export and delete older ones.", "浏览器存储已满:此对话未被保存。请导出并删除较早的对话。"],
  // The annotation page.
  annotateTitle: ["Compare answers", "比较回答"],
  annotateTabs: ["Kinds of work", "工作类型"],
  compareTab: ["Compare", "比较"],
  talkTab: ["Talk", "对话"],
  talkHere: ["Ask the model something", "向模型提问"],
  talkNote: [
    "Write what you like. The answers come side by side; the conversation goes on with the one you find best. Press Talk again for a new one.",
    "想写什么都可以。回答会并排出现,对话将以你认为最好的回答继续。再次按“对话”可重新开始。",
  ],
  testNote: [
    "Qualification test, {}: please read the guidelines first. Real work begins when you have passed.",
    "资格测试 {}:请先阅读指南。通过后开始正式工作。",
  ],
  askTwo: ["Which answer to the last message is better?", "对最后一条消息,哪个回答更好?"],
  askMany: ["Put the answers to the last message in order, best first.", "请将对最后一条消息的回答从最好到最差排序。"],
  answerNumber: ["Answer {}", "回答 {}"],
  makeBest: ["choose as best", "选为最好"],
  nextPlace: ["choose as next best", "选为次好"],
  tieNext: ["choose as tied", "选为并列"],
  better: ["better", "更好"],
  worse: ["worse", "较差"],
  rankAt: ["rank {}", "第 {} 名"],
  tiedAt: ["tied, rank {}", "并列第 {}"],
  score: ["Score", "评分"],
  flag_unhelpful: ["not helpful", "没有帮助"],
  flag_dishonest: ["not honest", "不诚实"],
  flag_harmful: ["harmful", "有害"],
  comment: ["Comment, if the reason is not plain", "评论(理由不明显时填写)"],
  undo: ["Undo", "撤销"],
  undoLabel: ["Take the last judgement back and make it anew", "撤回上一个判断并重做"],
  skip: ["Skip", "跳过"],
  skipLabel: ["Skip what cannot be judged", "跳过无法判断的题目"],
  tie: ["Tie", "并列"],
  tieLabel: ["Tie all that have no rank yet", "尚未排名的回答同样好"],
  submit: ["Submit", "提交"],
  kept: ["Kept.", "已保存。"],
  progress: ["{} done · {} left", "已完成 {} · 剩余 {}"],
  doneTitle: ["Nothing left to compare", "没有待比较的题目"],
  doneNote: ["Everything you sent is kept. Thank you.", "你提交的内容都已保存,谢谢。"],
  failedTitle: ["The test was not passed", "未通过测试"],
  failedNote: [
    "Thank you for taking part. Whoever runs this page can tell you more.",
    "感谢参与。详情请咨询本页面的管理者。",
  ],
  lookAgain: ["Look again", "再看一次"],
  guidelines: ["Guidelines", "指南"],
  understood: ["Understood", "明白"],
  keysTitle: ["Keys", "快捷键"],
  keyPlace: ["Give answer 1 … 9 the next rank, or take it back", "给回答 1 … 9 下一名次,或取消其名次"],
  keyTieNext: ["Tie the next answer with the last one", "下一个回答与上一个并列"],
  keyBack: ["Take the last rank back", "取消最后一个名次"],
  keyFocus: ["Go to another answer, for score and flags", "切换回答,以评分和标记"],
  keyScore: ["Score that answer, 1 (very bad) to 7", "给该回答评分,1(很差)到 7"],
  keyFlags: ["Flag it: not helpful, not honest, harmful", "标记:没有帮助、不诚实、有害"],
  signIn: ["Sign in", "登录"],
  signedIn: ["Signed in as {}", "已登录:{}"],
  annotatorKeyWhy: [
    "Your key tells who you are. Whoever runs this page makes one for you with this command:",
    "密钥表明你的身份。由运行本页面的人用下面的命令为你创建:",
  ],
  codeCopyLabel: ["Copy this code", "复制代码"],
  table: ["Table", "表格"],
  code: ["code", "代码"],
};
const LANGUAGES = ["en", "zh-CN"];
const stored = () => {
  try {
    return localStorage.getItem("talaria.language");
  } catch {
    return null;
  }
};

let language = LANGUAGES.indexOf(stored() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh-CN" : "en"));
if (language < 0) language = 0;

// The words of a key; {} in them becomes `value`.
export function words(key, value = "") {
  return WORDS[key][language].replace("{}", () => value);
}

export function hasWords(key) {
  return key in WORDS;
}

export const languageIndex = () => language; // 0 English, 1 Chinese

export function switchLanguage() {
  language = 1 - language;
  try {
    localStorage.setItem("talaria.language", LANGUAGES[language]);
  } catch {
    // Chosen for this visit only.
  }
}

// Fill what carries data-words, data-label (read aloud and shown on hovering) or data-placeholder.
export function fillWords() {
  document.documentElement.lang = LANGUAGES[language];
  for (const node of document.querySelectorAll("[data-words]")) node.textContent = words(node.dataset.words);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", words(node.dataset.label));
    if (node.matches("button")) node.title = words(node.dataset.label);
  }
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = words(node.dataset.placeholder);
}
